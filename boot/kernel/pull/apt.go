package pull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bounds on apt's commands: a mirror that hangs must not hang a pull.
const (
	aptResolveTimeout  = 2 * time.Minute
	aptUpdateTimeout   = 10 * time.Minute
	aptDownloadTimeout = 30 * time.Minute

	aptListsName   = "apt"
	aptListsFresh  = time.Hour
	aptUpdatedName = "updated"
	aptDebsName    = "debs"

	// maxAptOutput bounds what is kept of a command's output, in bytes.
	maxAptOutput = 16 << 20
)

// apt runs apt's tools so that they need no rights and change nothing of the
// host's: its sources and keys, but no packages installed, no hooks, and its
// package lists or private ones.
type apt struct {
	job    *job
	config string // an apt.conf
	debs   string // where packages are downloaded to
	lists  *workDir
}

// aptConfig is read after the host's configuration.
const aptConfig = `Dir::State::status %[1]q;
Dir::State::extended_states %[1]q;
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
`

// newApt sets apt up in the job's directory. An empty file is the status: what
// a kernel needs is resolved as on a machine that has nothing.
func newApt(j *job) (*apt, error) {
	a := &apt{job: j, config: j.work.join("apt.conf"), debs: j.work.join(aptDebsName)}
	for _, tool := range []string{"apt-get", "apt-cache"} {
		if _, err := a.tool(tool); err != nil {
			return nil, fmt.Errorf("%w: %s is not on this machine, and Debian's kernels are fetched with it: name an OCI image or a .deb instead", ErrUnavailable, tool)
		}
	}
	status := j.work.join("status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(a.config, fmt.Appendf(nil, aptConfig, status), 0o644); err != nil {
		return nil, err
	}
	if err := os.Mkdir(a.debs, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return a, nil
}

// close gives the private lists back and removes what need not stay: lists too,
// if they are not whole and have not served either.
func (a *apt) close(served bool) {
	if a.lists != nil {
		_ = a.lists.unlock(served || fileSize(a.lists.join(aptUpdatedName)) > 0)
	}
	os.Remove(a.config)
	os.Remove(a.job.work.join("status"))
	os.Remove(a.debs) // if it is empty
}

func (a *apt) tool(name string) (string, error) {
	if a.job.aptTools != "" {
		return exec.LookPath(filepath.Join(a.job.aptTools, name))
	}
	return exec.LookPath(name)
}

// run runs one of apt's tools with untranslated messages and returns what it
// wrote to stdout. Its error carries apt's error lines.
func (a *apt) run(ctx context.Context, limit time.Duration, name string, args ...string) (string, error) {
	path, err := a.tool(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	options := []string{"-c", a.config, "-q"}
	if a.lists != nil {
		options = append(options, "-o", "Dir::State::Lists="+a.listsDir())
	}
	cmd := exec.CommandContext(ctx, path, append(options, args...)...)
	cmd.Dir = a.debs
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// ^C on a terminal is for this process, which passes it on as it sees fit. If this
	// process is killed apt must not go on in a directory that nobody has locked; the
	// signal comes at the end of the thread, which is kept for that.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, errs := &capped{}, &capped{}
	cmd.Stdout, cmd.Stderr = out, errs
	err = cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		// What apt has started, if it is still there.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", fmt.Errorf("%w: %s did not end within %v", ErrUnavailable, name, limit)
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		return out.String(), &aptError{name, aptErrors(errs.String(), err)}
	}
	return out.String(), nil
}

// capped keeps the beginning of what is written.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), max(0, maxAptOutput-c.Len()))])
	return len(p), nil
}

// aptError is what apt itself says.
type aptError struct{ tool, says string }

func (e *aptError) Error() string { return e.tool + ": " + e.says }

// Is says whether apt does not know what it was asked for.
func (e *aptError) Is(target error) bool {
	if target != ErrNotFound {
		return false
	}
	for _, words := range []string{"Unable to locate package", "has no installation candidate", "was not found", "Can't find a source", "Couldn't find any package", "is invalid for APT::Default-Release"} {
		if strings.Contains(e.says, words) {
			return true
		}
	}
	return false
}

// aptErrors keeps apt's error lines, or the last line if there is none.
func aptErrors(s string, err error) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	var errs []string
	for _, l := range lines {
		if e, ok := strings.CutPrefix(l, "E: "); ok {
			errs = append(errs, strings.TrimSpace(e))
		}
	}
	if len(errs) == 0 && lines[len(lines)-1] != "" {
		errs = lines[len(lines)-1:]
	}
	if len(errs) == 0 {
		return err.Error()
	}
	return strings.Join(errs, "; ")
}

func (a *apt) listsDir() string { return a.lists.join("lists") }

// lockLists makes the next commands use the private lists.
func (a *apt) lockLists(ctx context.Context) (err error) {
	if a.lists == nil {
		a.lists, err = lockWork(ctx, a.job.dir, aptListsName, func() { a.job.report(StepWaiting, "", 0, 0) })
	}
	return err
}

// update gets package lists of this user's own, which other pulls use too while
// they are fresh. A failure of one of several sources is not fatal: what comes
// next tells whether it mattered.
func (a *apt) update(ctx context.Context) error {
	if err := a.lockLists(ctx); err != nil {
		return err
	}
	if info, err := a.lists.f.Stat(); err == nil && time.Since(info.ModTime()) < aptListsFresh && fileSize(a.lists.join(aptUpdatedName)) > 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(a.listsDir(), "partial"), 0o755); err != nil {
		return err
	}
	a.job.report(StepUpdating, "", 0, 0)
	if _, err := a.run(ctx, aptUpdateTimeout, "apt-get", "update"); err != nil {
		return err
	}
	// Its making anew makes the directory as young as the lists.
	os.Remove(a.lists.join(aptUpdatedName))
	return os.WriteFile(a.lists.join(aptUpdatedName), []byte("by vole\n"), 0o600)
}

// aptPackage is one package that apt would install.
type aptPackage struct{ name, version string }

// parseInst reads the packages out of the output of apt-get -s install:
// "Inst NAME [OLD] (VERSION ORIGIN [ARCH])".
func parseInst(out string) []aptPackage {
	var list []aptPackage
	seen := map[string]bool{}
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, "Inst ")
		if !ok {
			continue
		}
		name, rest, _ := strings.Cut(rest, " ")
		_, rest, ok = strings.Cut(rest, "(")
		version, _, _ := strings.Cut(rest, " ")
		if ok && name != "" && version != "" && !seen[name] {
			seen[name] = true
			list = append(list, aptPackage{name, strings.TrimRight(version, ")\n")})
		}
	}
	return list
}

// aptFile is a package file that apt would download.
type aptFile struct {
	name string
	size int64
}

// parseURIs reads the output of apt-get download --print-uris:
// "'URI' FILE SIZE HASH".
func parseURIs(out string) []aptFile {
	var list []aptFile
	for line := range strings.Lines(out) {
		_, rest, ok := strings.Cut(strings.TrimPrefix(line, "'"), "' ")
		fields := strings.Fields(rest)
		if !ok || !strings.HasPrefix(line, "'") || len(fields) < 2 || fields[0] != filepath.Base(fields[0]) || !strings.HasSuffix(fields[0], ".deb") {
			continue
		}
		if size, err := strconv.ParseInt(fields[1], 10, 64); err == nil && size > 0 {
			list = append(list, aptFile{fields[0], size})
		}
	}
	return list
}

// download fetches packages into a.debs. apt verifies them, and goes on with
// what an earlier download has left there.
func (a *apt) download(ctx context.Context, packages []aptPackage) ([]aptFile, error) {
	var specs []string
	for _, p := range packages {
		specs = append(specs, p.name+"="+p.version)
	}
	out, err := a.run(ctx, aptResolveTimeout, "apt-get", append([]string{"--print-uris", "download", "--"}, specs...)...)
	if err != nil {
		return nil, err
	}
	files := parseURIs(out)
	if len(files) != len(packages) {
		return nil, fmt.Errorf("%w: apt-get names %d files for %d packages", ErrUnavailable, len(files), len(packages))
	}
	total := int64(0)
	for _, f := range files {
		total += f.size
	}
	if total > maxDownload {
		return nil, archiveError("the packages have %d bytes, more than %d", total, int64(maxDownload))
	}
	stop := a.watch(files, packages[0].name, total)
	_, err = a.run(ctx, aptDownloadTimeout, "apt-get", append([]string{"download", "--"}, specs...)...)
	stop()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if size := fileSize(filepath.Join(a.debs, f.name)); size != f.size {
			return nil, fmt.Errorf("%w: apt-get left %d of the %d bytes of %s", ErrUnavailable, size, f.size, f.name)
		}
	}
	return files, nil
}

// watch reports how much is there of what apt downloads, until stop.
func (a *apt) watch(files []aptFile, name string, total int64) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			have := int64(0)
			for _, f := range files {
				have += min(f.size, fileSize(filepath.Join(a.debs, f.name)))
			}
			a.job.report(StepDownloading, name, have, total)
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}
