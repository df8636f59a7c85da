package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/vole-vmm/vole/testdata/nested"
)

// errNoPackage says that apt knows no package of a name, even after an update.
var errNoPackage = errors.New("the package archive does not have it")

// Bounds on single commands: a mirror that hangs must not hang the tests.
const (
	resolveTimeout  = 2 * time.Minute
	updateTimeout   = 5 * time.Minute
	downloadTimeout = 15 * time.Minute
	unpackTimeout   = 5 * time.Minute
)

// apt drives apt-get and dpkg-deb for one cache directory.
type apt struct {
	cache   string
	work    string // scratch directory inside the cache, for atomic renames
	status  string // an empty dpkg status file: resolve as on a machine with nothing installed
	lists   string // "" while the system's package lists are used
	arch    string // "" is this machine's
	updated bool
}

// newApt prepares apt for an architecture, "" being this machine's own. For
// another one it always has lists of its own, which go with it.
func newApt(cache, arch string) (*apt, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is not here: the test kernels and QEMU are fetched on Debian or Ubuntu only", tool)
		}
	}
	work, err := os.MkdirTemp(cache, ".work-")
	if err != nil {
		return nil, fmt.Errorf("create a scratch directory: %w", err)
	}
	a := &apt{cache: cache, work: work, status: filepath.Join(work, "status"), arch: arch}
	if err := os.WriteFile(a.status, nil, 0o644); err != nil {
		a.close()
		return nil, fmt.Errorf("create an empty package status: %w", err)
	}
	if lists := filepath.Join(cache, "apt", "lists"); arch == "" && dirExists(lists) {
		a.lists = lists
	} else if arch != "" {
		a.lists = filepath.Join(work, "lists")
		if err := os.Mkdir(a.lists, 0o755); err != nil {
			a.close()
			return nil, fmt.Errorf("create private package lists: %w", err)
		}
	}
	return a, nil
}

func (a *apt) close() { os.RemoveAll(a.work) }

func dirExists(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// options are given to every apt-get: nothing outside the cache is written.
func (a *apt) options() []string {
	opts := []string{
		"-q",
		"-o", "Dir::State::status=" + a.status,
		"-o", "APT::Install-Recommends=false",
		"-o", "APT::Install-Suggests=false",
		"-o", "APT::Get::Assume-Yes=true",
		"-o", "Acquire::Retries=3",
		"-o", "Dir::Cache::pkgcache=",
		"-o", "Dir::Cache::srcpkgcache=",
	}
	if a.lists != "" {
		opts = append(opts, "-o", "Dir::State::Lists="+a.lists)
	}
	if a.arch != "" {
		opts = append(opts, "-o", "APT::Architecture="+a.arch, "-o", "APT::Architectures::="+a.arch, "-o", "Acquire::Languages=none")
	}
	return opts
}

// command runs a program in dir with an untranslated output and returns what
// it wrote to stdout; its error carries the last lines of stderr.
func command(ctx context.Context, limit time.Duration, dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() == context.DeadlineExceeded {
		return out.String(), fmt.Errorf("%s did not end within %v", name, limit)
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", name, err, lastErrors(errs.String()))
	}
	return out.String(), nil
}

// lastErrors keeps apt's error lines, or the last line if there is none.
func lastErrors(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	var errs []string
	for _, l := range lines {
		if strings.HasPrefix(l, "E: ") {
			errs = append(errs, strings.TrimPrefix(l, "E: "))
		}
	}
	if len(errs) == 0 {
		return lines[len(lines)-1]
	}
	return strings.Join(errs, "; ")
}

// resolved is one package that apt would install.
type resolved struct{ name, version string }

// instLine is apt's record of a simulated installation:
// "Inst libc6 (2.36-9 Debian:12/stable [amd64])", with the installed version
// in brackets before the parenthesis on an upgrade.
var instLine = regexp.MustCompile(`(?m)^Inst (\S+) (?:\[[^\]]*\] )?\((\S+) [^)]*\)`)

// parseInst reads the packages out of the output of apt-get -s install.
func parseInst(out string) []resolved {
	var list []resolved
	seen := map[string]bool{}
	for _, m := range instLine.FindAllStringSubmatch(out, -1) {
		if !seen[m[1]] {
			seen[m[1]] = true
			list = append(list, resolved{m[1], m[2]})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
	return list
}

// resolve asks apt for the closure of the packages named, as on a machine
// where nothing is installed.
func (a *apt) resolve(ctx context.Context, roots []string) ([]resolved, error) {
	args := append(a.options(), "-s", "install", "--")
	out, err := command(ctx, resolveTimeout, a.work, "apt-get", append(args, roots...)...)
	if err != nil {
		if strings.Contains(err.Error(), "Unable to locate package") || strings.Contains(err.Error(), "has no installation candidate") {
			return nil, fmt.Errorf("%w: %s", errNoPackage, strings.Join(roots, " "))
		}
		return nil, err
	}
	list := parseInst(out)
	if len(list) == 0 {
		return nil, fmt.Errorf("apt-get resolved %s to nothing", strings.Join(roots, " "))
	}
	return list, nil
}

// update refreshes the package lists: the system's as root, else private ones
// in the cache. Its failure is returned only for the message: an unrelated
// third-party source may be the cause, and what follows finds out.
func (a *apt) update(ctx context.Context) error {
	a.updated = true
	if os.Geteuid() != 0 && a.lists == "" {
		a.lists = filepath.Join(a.cache, "apt", "lists")
	}
	if a.lists != "" {
		if err := os.MkdirAll(filepath.Join(a.lists, "partial"), 0o755); err != nil {
			return fmt.Errorf("create private package lists: %w", err)
		}
	}
	where := "the system's package lists"
	if a.lists != "" {
		where = "private package lists"
	}
	fmt.Fprintf(os.Stderr, "deps: updating %s\n", where)
	_, err := command(ctx, updateTimeout, a.work, "apt-get", append(a.options(), "update")...)
	return err
}

// fetch brings one component into the cache.
func (a *apt) fetch(ctx context.Context, w want) (nested.Component, error) {
	if w.asRoot && os.Geteuid() != 0 {
		return nested.Component{}, fmt.Errorf("%w: that needs root", errNotBuilt)
	}
	c, err := a.try(ctx, w)
	if err == nil || a.updated || ctx.Err() != nil || errors.Is(err, errNotBuilt) {
		return c, err
	}
	// The lists are missing or older than the archive.
	uerr := a.update(ctx)
	c, err = a.try(ctx, w)
	if err != nil && uerr != nil {
		return c, fmt.Errorf("%w (and %w: is the network there? `apt-get update` must work)", err, uerr)
	}
	return c, err
}

func (a *apt) try(ctx context.Context, w want) (nested.Component, error) {
	none := nested.Component{}
	closure, err := a.resolve(ctx, w.roots)
	if err != nil {
		return none, err
	}
	var specs []string
	for _, p := range closure {
		if name, _, _ := strings.Cut(p.name, ":"); w.take(name) {
			specs = append(specs, p.name+"="+p.version)
		}
	}
	if len(specs) == 0 {
		return none, fmt.Errorf("apt-get resolved %s to packages none of which is of use", strings.Join(w.roots, " "))
	}
	fmt.Fprintf(os.Stderr, "deps: %s: fetching %d packages\n", w.name, len(specs))
	debs, err := os.MkdirTemp(a.work, "debs-")
	if err != nil {
		return none, fmt.Errorf("create a scratch directory: %w", err)
	}
	defer os.RemoveAll(debs)
	args := append(a.options(), "download", "--")
	if _, err := command(ctx, downloadTimeout, debs, "apt-get", append(args, specs...)...); err != nil {
		return none, err
	}
	return a.unpack(ctx, w, debs, len(specs))
}

// unpack turns the packages in debs into the component's tree.
func (a *apt) unpack(ctx context.Context, w want, debs string, count int) (nested.Component, error) {
	none := nested.Component{}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(files) != count {
		return none, fmt.Errorf("apt-get downloaded %d of %d packages", len(files), count)
	}
	tree := filepath.Join(a.work, w.name)
	if err := os.RemoveAll(tree); err != nil {
		return none, fmt.Errorf("clear a scratch directory: %w", err)
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return none, fmt.Errorf("create a tree: %w", err)
	}
	c := nested.Component{Name: w.name, Recipe: w.recipe}
	id := sha256.New()
	for _, f := range files {
		p, err := describe(ctx, f)
		if err != nil {
			return none, err
		}
		c.Packages = append(c.Packages, p)
		fmt.Fprintln(id, p.Name, p.Version, p.SHA256)
		if w.build != nil {
			continue
		}
		if w.only != nil {
			err = extract(ctx, f, tree, w.only)
		} else {
			_, err = command(ctx, unpackTimeout, debs, "dpkg-deb", "-x", f, tree)
		}
		if err != nil {
			return none, fmt.Errorf("unpack %s: %w", filepath.Base(f), err)
		}
		// The disk holds package and tree only one package at a time.
		os.Remove(f)
	}
	if w.build != nil {
		fmt.Fprintf(os.Stderr, "deps: %s: putting %d packages together\n", w.name, len(files))
		if err := w.build(ctx, files, tree); err != nil {
			return none, err
		}
	}
	if w.recipe != "" {
		fmt.Fprintln(id, w.recipe)
	}
	c.Dir = w.name + "-" + hex.EncodeToString(id.Sum(nil))[:12]
	final := filepath.Join(a.cache, c.Dir)
	if err := os.RemoveAll(final); err != nil {
		return none, fmt.Errorf("replace a tree: %w", err)
	}
	if err := os.Rename(tree, final); err != nil {
		return none, fmt.Errorf("put the tree in its place: %w", err)
	}
	fmt.Fprintf(os.Stderr, "deps: %s: %s\n", w.name, final)
	return c, nil
}

// describe reads a package's name and version, and its digest.
func describe(ctx context.Context, deb string) (nested.Package, error) {
	out, err := command(ctx, time.Minute, "", "dpkg-deb", "-W", "--showformat=${Package}\t${Version}", deb)
	if err != nil {
		return nested.Package{}, err
	}
	name, version, _ := strings.Cut(strings.TrimSpace(out), "\t")
	f, err := os.Open(deb)
	if err != nil {
		return nested.Package{}, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nested.Package{}, fmt.Errorf("read %s: %w", deb, err)
	}
	return nested.Package{Name: name, Version: version, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}
