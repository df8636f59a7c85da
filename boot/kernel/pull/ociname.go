package pull

import (
	"fmt"
	"net"
	"strings"
)

// imageSource is an OCI image with a kernel in it.
type imageSource struct {
	registry   string // host[:port]
	repository string
	tag        string // "" with a digest
	digest     string // sha256:HEX, or ""
}

func (s imageSource) String() string {
	name := ociPrefix + s.registry + "/" + s.repository
	if s.tag != "" {
		name += ":" + s.tag
	}
	if s.digest != "" {
		name += "@" + s.digest
	}
	return name
}

const (
	defaultTag  = "latest"
	dockerHub   = "docker.io"
	dockerHost  = "registry-1.docker.io"
	dockerOwner = "library/"
	sumPrefix   = "sha256:"
)

// parseImage reads REGISTRY/REPOSITORY[:TAG][@DIGEST] (OCI Distribution
// Specification, "Pulling manifests").
func parseImage(name string) (Source, error) {
	var s imageSource
	rest, digest, ok := strings.Cut(name, "@")
	if ok {
		if !validDigest(digest) {
			return nil, fmt.Errorf("the digest %q is not sha256: and 64 hexadecimal digits", digest)
		}
		s.digest = digest
	}
	s.registry, rest, ok = strings.Cut(rest, "/")
	if !ok || s.registry == "" {
		return nil, fmt.Errorf("an image is named REGISTRY/REPOSITORY:TAG, as ghcr.io/cilium/ci-kernels:6.6")
	}
	if !validHost(s.registry) {
		return nil, fmt.Errorf("%q is not the name of a registry", s.registry)
	}
	if at := strings.LastIndex(rest, ":"); at >= 0 {
		rest, s.tag = rest[:at], rest[at+1:]
		if !validTag(s.tag) {
			return nil, fmt.Errorf("%q is not a tag", s.tag)
		}
	} else if s.digest == "" {
		s.tag = defaultTag
	}
	if s.registry == dockerHub && !strings.Contains(rest, "/") {
		rest = dockerOwner + rest
	}
	s.repository = rest
	if !validRepository(rest) {
		return nil, fmt.Errorf("%q is not a repository: lower-case letters, digits, and . _ - / between them", rest)
	}
	return s, nil
}

func validDigest(s string) bool {
	sum, ok := strings.CutPrefix(s, sumPrefix)
	return ok && len(sum) == 64 && !strings.ContainsFunc(sum, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'f')
	})
}

func validHost(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(isAlphanumeric(r) || r >= 'A' && r <= 'Z' || strings.ContainsRune(".-:[]", r))
	})
}

func isAlphanumeric(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }

func validTag(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !(isAlphanumeric(r) || r >= 'A' && r <= 'Z' || strings.ContainsRune("_.-", r))
	})
}

func validRepository(s string) bool {
	if len(s) > 255 {
		return false
	}
	for c := range strings.SplitSeq(s, "/") {
		if c == "" || strings.ContainsFunc(c, func(r rune) bool { return !isAlphanumeric(r) && !strings.ContainsRune("._-", r) }) ||
			!isAlphanumeric(rune(c[0])) || !isAlphanumeric(rune(c[len(c)-1])) {
			return false
		}
	}
	return true
}

// base is the URL of the registry's API. One on this machine has no TLS.
func (s imageSource) base() string {
	host, _, err := net.SplitHostPort(s.registry)
	if err != nil {
		host = s.registry
	}
	scheme := "https"
	if ip := net.ParseIP(strings.Trim(host, "[]")); host == "localhost" || ip != nil && ip.IsLoopback() {
		scheme = "http"
	}
	name := s.registry
	if name == dockerHub {
		name = dockerHost
	}
	return scheme + "://" + name + "/v2/" + s.repository
}
