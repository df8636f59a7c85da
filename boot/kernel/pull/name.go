package pull

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"
)

// DefaultName is what [Parse] takes a pull without a name for.
const DefaultName = "debian"

// Usage says what names look like.
const Usage = `debian, a Debian package (linux-image-amd64), a version (6.12), an OCI image (ghcr.io/cilium/ci-kernels:6.6), a .deb file or its https URL, or a directory (./linux)`

const (
	debianPrefix  = "debian:"
	ociPrefix     = "oci:"
	packagePrefix = "linux-image-"

	// defaultPackage is the smallest of Debian's kernels that has what a guest
	// needs.
	defaultPackage = "linux-image-cloud-amd64"
)

// Parse makes sources of names, in their order. The names of all .deb files
// and URLs together are one source: a distribution may have a kernel and its
// modules in several packages. Errors wrap ErrName, and say what names look
// like; nothing is looked up.
//
//	debian                                     linux-image-cloud-amd64
//	linux-image-amd64, debian:linux-image-amd64  a package, or one that depends on it
//	linux-image-amd64=6.1.192-2                its version
//	linux-image-amd64/bookworm-backports       its release
//	6.12, 6.12.9                               the newest package of that version
//	ghcr.io/cilium/ci-kernels:6.6, oci:IMAGE   an OCI image with boot/vmlinuz
//	./linux-image.deb, https://HOST/PATH.deb   a package
//	https://HOST/PATH.deb#sha256=HEX           and what it must be
//	./linux, /usr/src/linux                    a build tree, or a directory with boot and lib
func Parse(names ...string) ([]Source, error) {
	var sources []Source
	var debs *debSource
	for _, name := range names {
		part, ok, err := parseDeb(name)
		if err != nil {
			return nil, fmt.Errorf("pull: %q: %w: %w", name, ErrName, err)
		}
		if ok {
			if debs == nil {
				debs = &debSource{}
				sources = append(sources, debs)
			}
			debs.parts = append(debs.parts, part)
			continue
		}
		s, err := parse(name)
		if err != nil {
			return nil, fmt.Errorf("pull: %q: %w: %w", name, ErrName, err)
		}
		sources = append(sources, s)
	}
	return sources, nil
}

func parse(name string) (Source, error) {
	switch {
	case name == DefaultName:
		return aptSource{defaultPackage}, nil
	case strings.HasPrefix(name, debianPrefix):
		return parseApt(strings.TrimPrefix(name, debianPrefix))
	case strings.HasPrefix(name, ociPrefix):
		return parseImage(strings.TrimPrefix(name, ociPrefix))
	case isPath(name):
		dir, err := filepath.Abs(name)
		return dirSource{dir}, err
	case strings.HasPrefix(name, packagePrefix), name != "" && name[0] >= '0' && name[0] <= '9' && !strings.Contains(name, "/"):
		return parseApt(name)
	case strings.Contains(name, "://"):
		return nil, fmt.Errorf("not the URL of a .deb: want %s", Usage)
	}
	if host, _, ok := strings.Cut(name, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		return parseImage(name)
	}
	return nil, fmt.Errorf("want %s", Usage)
}

func isPath(name string) bool {
	return name == "." || name == ".." || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../")
}

// debPart is a package as a file or at a URL.
type debPart struct {
	path string // absolute, "" for a URL
	url  string // without the fragment
	sum  string // hexadecimal SHA-256, "" if it isn't known
}

func (p debPart) String() string {
	if p.path != "" {
		return p.path
	}
	return download{url: p.url}.String()
}

// base is the package's file name.
func (p debPart) base() string {
	if u, err := url.Parse(p.url); p.url != "" && err == nil {
		return path.Base(u.Path)
	}
	return filepath.Base(p.path)
}

// parseDeb says whether the name is that of a Debian package, and of which.
func parseDeb(name string) (debPart, bool, error) {
	if scheme, _, ok := strings.Cut(name, "://"); ok {
		u, err := url.Parse(name)
		if err != nil || !strings.HasSuffix(u.Path, ".deb") {
			return debPart{}, false, nil
		}
		part := debPart{}
		if u.Fragment != "" {
			sum, ok := strings.CutPrefix(strings.ToLower(u.Fragment), "sha256=")
			if b, err := hex.DecodeString(sum); !ok || err != nil || len(b) != 32 {
				return part, false, fmt.Errorf("after # want sha256= and 64 hexadecimal digits")
			}
			part.sum = sum
		}
		switch {
		case scheme == "http" && part.sum == "":
			return part, false, fmt.Errorf("what comes by http can be anybody's: want https, or #sha256=HEX behind it")
		case scheme != "http" && scheme != "https", u.Host == "":
			return part, false, fmt.Errorf("want https://HOST/PATH.deb")
		}
		u.Fragment, u.RawFragment = "", ""
		part.url = u.String()
		return part, true, nil
	}
	if !strings.HasSuffix(name, ".deb") || strings.HasPrefix(name, ociPrefix) {
		return debPart{}, false, nil
	}
	path, err := filepath.Abs(name)
	return debPart{path: path}, err == nil, err
}
