package pull

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vole-vmm/vole/boot/kernel"
)

// aptSource is a kernel in the archives that the host's apt knows: a package,
// NAME[=VERSION][/RELEASE], or the first numbers of a kernel's version.
type aptSource struct{ query string }

func (s aptSource) String() string { return debianPrefix + s.query }

func parseApt(query string) (Source, error) {
	if query == "" || query[0] == '-' || strings.ContainsFunc(query, func(r rune) bool {
		return !(isAlphanumeric(r) || r >= 'A' && r <= 'Z' || strings.ContainsRune("+-.:~=/_", r))
	}) || strings.Count(query, "=")+strings.Count(query, "/") > 1 || strings.HasSuffix(query, "=") || strings.HasSuffix(query, "/") {
		return nil, errors.New("want a package, as linux-image-amd64, with =VERSION or /RELEASE behind it, or a version, as 6.12")
	}
	if isVersion(query) && strings.ContainsAny(query, "=/:_") {
		return nil, fmt.Errorf("want the beginning of a version, as 6.12, or a release, as 6.1.0-50-cloud-amd64")
	}
	return aptSource{query}, nil
}

func isVersion(query string) bool { return query[0] >= '0' && query[0] <= '9' }

func (s aptSource) find(ctx context.Context, j *job) (_ offer, err error) {
	a, err := newApt(j)
	if err != nil {
		return offer{}, err
	}
	defer func() { a.close(err == nil) }()
	packages, err := s.resolve(ctx, a)
	if err != nil && ctx.Err() == nil {
		// The host may have no lists, or old ones.
		packages, err = s.updated(ctx, a, err)
	}
	if err != nil {
		return offer{}, err
	}
	private := a.lists != nil
	return offer{id: aptID(packages), fetch: func(ctx context.Context, j *job, t *tree) (fetched, error) {
		return s.fetch(ctx, j, t, packages, private)
	}}, nil
}

// updated resolves with lists that are new. Its error has what was wrong before
// where an update is not to be had.
func (s aptSource) updated(ctx context.Context, a *apt, before error) ([]aptPackage, error) {
	failed := a.update(ctx)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	packages, err := s.resolve(ctx, a)
	if err != nil && failed != nil {
		return nil, fmt.Errorf("%w (and apt's package lists can't be updated: %w)", before, failed)
	}
	return packages, err
}

func aptID(packages []aptPackage) string {
	var ids []string
	for _, p := range packages {
		ids = append(ids, p.name+"="+p.version)
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// resolve asks apt which packages the kernel is in.
func (s aptSource) resolve(ctx context.Context, a *apt) ([]aptPackage, error) {
	query := s.query
	if isVersion(query) {
		var err error
		if query, err = a.newest(ctx, query); err != nil {
			return nil, err
		}
	}
	args := []string{"-s", "install"}
	if name, release, ok := strings.Cut(query, "/"); ok {
		query, args = name, append(args, "-t", release)
	}
	out, err := a.run(ctx, aptResolveTimeout, "apt-get", append(args, "--", query)...)
	if err != nil {
		return nil, err
	}
	var packages []aptPackage
	for _, p := range parseInst(out) {
		if isKernelPackage(p.name) {
			packages = append(packages, p)
		}
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("%w: apt resolves %s to no package of a kernel", ErrNotFound, query)
	}
	return packages, nil
}

// isKernelPackage says whether a package has a kernel or modules of it. A
// distribution may split them.
func isKernelPackage(name string) bool {
	for _, prefix := range []string{packagePrefix, "linux-modules-", "linux-binary-"} {
		if strings.HasPrefix(name, prefix) {
			return !strings.HasSuffix(name, "-dbg") && !strings.Contains(name, ":")
		}
	}
	return false
}

// newest finds the package of the newest kernel whose version begins as given,
// Debian's cloud flavour before the ordinary one before others.
func (a *apt) newest(ctx context.Context, version string) (string, error) {
	out, err := a.run(ctx, aptResolveTimeout, "apt-cache", "pkgnames", "--", packagePrefix+version)
	if err != nil {
		return "", err
	}
	best := chooseVersion(strings.Fields(out), version)
	if best == "" {
		return "", fmt.Errorf("%w: apt knows no package %s%s*", ErrNotFound, packagePrefix, version)
	}
	return best, nil
}

func chooseVersion(names []string, version string) string {
	rank := func(release string) int {
		switch {
		case release == version:
			return 4
		case strings.HasSuffix(release, "-cloud-amd64"), strings.HasSuffix(release, "-virtual"):
			return 3
		case strings.HasSuffix(release, "-rt-amd64"), strings.HasSuffix(release, "-lowlatency"):
			return 1
		case strings.HasSuffix(release, "-amd64"), strings.HasSuffix(release, "-generic"):
			return 2
		}
		return 0
	}
	best := ""
	for _, name := range names {
		release, ok := strings.CutPrefix(name, packagePrefix)
		rest, begins := strings.CutPrefix(release, version)
		if !ok || !begins || rest != "" && rest[0] >= '0' && rest[0] <= '9' || rank(release) == 0 {
			continue
		}
		if best == "" || rank(release) > rank(best) || rank(release) == rank(best) && kernel.CompareVersions(release, best) > 0 {
			best = release
		}
	}
	if best == "" {
		return ""
	}
	return packagePrefix + best
}

// fetch downloads and unpacks packages that were found in the host's lists or in
// private ones.
func (s aptSource) fetch(ctx context.Context, j *job, t *tree, packages []aptPackage, private bool) (_ fetched, err error) {
	a, err := newApt(j)
	if err != nil {
		return fetched{}, err
	}
	defer func() { a.close(err == nil) }()
	if private {
		if err := a.lockLists(ctx); err != nil {
			return fetched{}, err
		}
	}
	files, err := a.download(ctx, packages)
	if err != nil && ctx.Err() == nil {
		// The archive has gone on since the lists were made, or what an earlier
		// download has left does not fit.
		if packages, err = s.updated(ctx, a, err); err == nil {
			if err = removeAll(a.debs); err == nil {
				err = os.Mkdir(a.debs, 0o755)
			}
		}
		if err == nil {
			files, err = a.download(ctx, packages)
		}
	}
	if err != nil {
		return fetched{}, err
	}
	got := fetched{id: aptID(packages)}
	for _, f := range files {
		path := filepath.Join(a.debs, f.name)
		part, err := j.unpackDeb(ctx, path, f.name, t)
		if err != nil {
			return got, err
		}
		got.parts = append(got.parts, part)
	}
	return got, removeAll(a.debs)
}
