package pull

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	here, err := filepath.Abs(".")
	require.NoError(t, err)
	sum := strings.Repeat("a", 64)
	for name, want := range map[string]string{
		"debian":                               "debian:linux-image-cloud-amd64",
		"linux-image-amd64":                    "debian:linux-image-amd64",
		"debian:linux-image-amd64":             "debian:linux-image-amd64",
		"linux-image-amd64=6.1.192-2":          "debian:linux-image-amd64=6.1.192-2",
		"linux-image-amd64/bookworm-backports": "debian:linux-image-amd64/bookworm-backports",
		"6.12":                                 "debian:6.12",
		"6.1.0-50-cloud-amd64":                 "debian:6.1.0-50-cloud-amd64",
		"ghcr.io/cilium/ci-kernels:6.6":        "oci:ghcr.io/cilium/ci-kernels:6.6",
		"ghcr.io/cilium/ci-kernels":            "oci:ghcr.io/cilium/ci-kernels:latest",
		"oci:localhost/x@sha256:" + sum:        "oci:localhost/x@sha256:" + sum,
		"oci:host/x:t@sha256:" + sum:           "oci:host/x:t@sha256:" + sum,
		"localhost:5000/a/b:c":                 "oci:localhost:5000/a/b:c",
		"docker.io/kernel:1":                   "oci:docker.io/library/kernel:1",
		"./linux":                              here + "/linux",
		".":                                    here,
		"/usr/src/linux/":                      "/usr/src/linux",
		"x.deb":                                here + "/x.deb",
		"/a/x.deb":                             "/a/x.deb",
		"https://host/a/x.deb":                 "https://host/a/x.deb",
		"http://host/x.deb#sha256=" + sum:      "http://host/x.deb",
		"https://u:p@host/x.deb?a=b":           "https://u:xxxxx@host/x.deb?a=b",
	} {
		s, err := Parse(name)
		require.NoError(t, err, name)
		require.Len(t, s, 1, name)
		assert.Equal(t, want, s[0].String())
	}
	s, err := Parse("a.deb", "6.12", "https://host/b.deb")
	require.NoError(t, err)
	require.Len(t, s, 2, "the packages are one")
	assert.Equal(t, here+"/a.deb https://host/b.deb", s[0].String())
}

func TestParseRefuses(t *testing.T) {
	for name, words := range map[string]string{
		"":                                     "want debian",
		"nix":                                  "want debian",
		"linux":                                "want debian",
		"dir/linux":                            "want debian",
		"--help":                               "want debian",
		"debian:":                              "want a package",
		"debian:-o=x":                          "want a package",
		"linux-image-amd64=":                   "want a package",
		"linux-image-a;b":                      "want a package",
		"linux-image-a b":                      "want a package",
		"linux-image-a=b/c":                    "want a package",
		"6.12=1":                               "beginning of a version",
		"http://host/x.deb":                    "anybody's",
		"ftp://host/x.deb":                     "want https://",
		"https:///x.deb":                       "want https://",
		"https://host/x":                       "not the URL of a .deb",
		"https://host/x.deb#sha256=12":         "64 hexadecimal",
		"https://host/x.deb#md5=12":            "64 hexadecimal",
		"oci:":                                 "REGISTRY/",
		"oci:x":                                "REGISTRY/",
		"oci:/x":                               "REGISTRY/",
		"oci:host/":                            "not a repository",
		"oci:host/A":                           "not a repository",
		"oci:host/a/../b":                      "not a repository",
		"oci:host/a//b":                        "not a repository",
		"oci:host/a:":                          "not a tag",
		"oci:host/a:/x":                        "not a tag",
		"oci:host/a:x/../../y":                 "not a tag",
		"oci:host/a@sha256:12":                 "hexadecimal",
		"oci:host/a@md5:12":                    "hexadecimal",
		"oci:ho st/a":                          "not the name of a registry",
		"oci:host?x/a":                         "not the name of a registry",
		"oci:host/" + strings.Repeat("a", 256): "not a repository",
	} {
		_, err := Parse(name)
		require.ErrorIs(t, err, ErrName, name)
		assert.ErrorContains(t, err, words, name)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"debian", "6.12", "ghcr.io/cilium/ci-kernels:6.6@sha256:00", "./x", "https://h/x.deb#sha256=00", "linux-image-x=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s, err := Parse(name)
		if err != nil {
			require.ErrorIs(t, err, ErrName)
			return
		}
		require.Len(t, s, 1)
		if strings.Contains(name, "://") || strings.ContainsAny(name, " ") {
			return
		}
		again, err := Parse(s[0].String())
		require.NoError(t, err)
		require.Equal(t, s[0].String(), again[0].String())
	})
}

func TestRegistryBase(t *testing.T) {
	for name, want := range map[string]string{
		"ghcr.io/a":         "https://ghcr.io/v2/a",
		"localhost/a":       "http://localhost/v2/a",
		"127.0.0.1:5000/a":  "http://127.0.0.1:5000/v2/a",
		"oci:[::1]:5000/a":  "http://[::1]:5000/v2/a",
		"10.0.0.1:5000/a":   "https://10.0.0.1:5000/v2/a",
		"docker.io/a":       "https://registry-1.docker.io/v2/library/a",
		"localhost.evil/a":  "https://localhost.evil/v2/a",
		"example.org:443/a": "https://example.org:443/v2/a",
	} {
		assert.Equal(t, want, source(t, name).(imageSource).base())
	}
}
