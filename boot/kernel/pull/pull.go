package pull

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
)

// Source is somewhere that a kernel can be had from. [Parse] makes them.
type Source interface {
	// String is the source's name in full: Parse makes the same source of it.
	String() string
	// find looks up what the source has now. Nothing of it is fetched yet.
	find(ctx context.Context, j *job) (offer, error)
}

// offer is one state of a source.
type offer struct {
	// id is Record.ID.
	id string
	// fetch puts the kernel and its modules into the tree. What it downloads
	// goes into the job's directory.
	fetch func(ctx context.Context, j *job, t *tree) (fetched, error)
}

// fetched is what a kernel was taken from, and the id, if that turned out to be
// another one than find said.
type fetched struct {
	id    string
	parts []Part
}

// Options change how [Pull] works.
type Options struct {
	// Dir is the directory of pulled kernels; "" is kernel.PulledDir.
	Dir string
	// Cache, if not nil, gets the kernel's vmlinux too.
	Cache *kernel.Cache
	// Progress, if not nil, is told what Pull does, often. It is called from
	// Pull's goroutines, by one at a time, and must not call Pull.
	Progress func(Progress)

	limits limits
	web    *web
	apt    string // the directory of apt's tools, for tests
}

// Result is a kernel that [Pull] has brought here, or found here.
type Result struct {
	Record
	// Path is that of the bzImage, and ModulesDir that of its modules, "" if it
	// has none.
	Path, ModulesDir string
	// Present says that the kernel was here already and nothing was fetched.
	Present bool
	// Warnings are what did not work and is not needed.
	Warnings []error
}

// job is one pull at work.
type job struct {
	*reporter
	dir      string   // of pulled kernels
	work     *workDir // for what is downloaded
	web      *web
	limits   limits
	aptTools string
}

// Pull fetches a kernel, with its modules, into the directory of pulled
// kernels. One that is there already in the state that the source has now is
// only looked up. Another process that pulls the same is waited for. When Pull
// returns an error there is no new kernel, no half of one, and any older one
// from the same source is as it was.
//
// The end of ctx ends it, in bounded time. Errors wrap those of this package, of
// package kernel (ErrCacheDir), of the network or the file system.
func Pull(ctx context.Context, src Source, opt Options) (Result, error) {
	r, err := pull(ctx, src, opt)
	if err != nil {
		return r, fmt.Errorf("pull: %s: %w", src, err)
	}
	return r, nil
}

func pull(ctx context.Context, src Source, opt Options) (res Result, err error) {
	if opt.limits == (limits{}) {
		opt.limits = defaultLimits
	}
	if opt.web == nil {
		opt.web = newWeb()
		defer opt.web.close()
	}
	j := &job{reporter: &reporter{to: opt.Progress}, web: opt.web, limits: opt.limits, aptTools: opt.apt}
	if j.dir, err = pulledDir(opt.Dir); err != nil {
		return res, err
	}
	made := missing(j.dir)
	defer func() {
		for _, dir := range made {
			if err == nil || os.Remove(dir) != nil { // not if there is something in it
				break
			}
		}
	}()
	if err := kernel.MakePrivateDir(j.dir); err != nil {
		return res, err
	}
	sweep(j.dir, false)
	name := src.String()
	j.work, err = lockWork(ctx, j.dir, workKey(name), func() { j.report(StepWaiting, "", 0, 0) })
	if err != nil {
		return res, err
	}
	defer func() {
		// What has been downloaded stays, to go on from, if a pull has ended
		// early; not on a disk that is full.
		uerr := j.work.unlock(err != nil && !errors.Is(err, errHost) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT))
		if err == nil && uerr != nil {
			res.Warnings = append(res.Warnings, uerr)
		}
	}()
	if err := j.work.clearStage(); err != nil {
		return res, err
	}
	j.report(StepLooking, name, 0, 0)
	found, err := src.find(ctx, j)
	if err != nil {
		return res, err
	}
	if old, ok := j.present(name, found.id); ok {
		res.Record, res.Present = old, true
	} else if res.Record, res.Warnings, err = j.make(ctx, name, found); err != nil {
		return res, err
	}
	dir := filepath.Join(j.dir, res.Name)
	res.Path = filepath.Join(dir, imageName)
	if res.Record.Modules {
		res.ModulesDir = filepath.Join(dir, modulesName, res.Release)
	}
	return res, j.fill(ctx, opt.Cache, &res)
}

// missing are those of dir and the directories above it that do not exist.
func missing(dir string) (dirs []string) {
	for {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return dirs
		}
		dirs = append(dirs, dir)
		dir = filepath.Dir(dir)
	}
}

// workKey is the name of a source's directory under .work.
func workKey(source string) string {
	sum := sha256.Sum256([]byte(source))
	return hex.EncodeToString(sum[:10])
}

// present looks for a kernel that was pulled from the source in that state.
func (j *job) present(source, id string) (Record, bool) {
	records, err := Records(j.dir)
	if err != nil || id == "" {
		return Record{}, false
	}
	for _, r := range records {
		if r.Source != source || r.ID != id {
			continue
		}
		dir := filepath.Join(j.dir, r.Name)
		release, err := kernel.Release(filepath.Join(dir, imageName))
		if err == nil && release == r.Release && (!r.Modules || kernel.HasModules(filepath.Join(dir, modulesName, release))) {
			return r, true
		}
	}
	return Record{}, false
}

// make fetches the kernel and puts it in its place.
func (j *job) make(ctx context.Context, source string, found offer) (r Record, warnings []error, err error) {
	stage := j.work.join(stageName)
	t, err := newTree(stage, j.limits)
	if err != nil {
		return r, nil, err
	}
	defer t.close()
	r = Record{Format: recordFormat, Source: source, ID: found.id, Pulled: time.Now().UTC().Truncate(time.Second)}
	got, err := found.fetch(ctx, j, t)
	if err != nil {
		return r, nil, err
	}
	r.Parts, r.ID = got.parts, cmp.Or(got.id, r.ID)
	if r.Release, err = t.settle(); err != nil {
		return r, nil, err
	}
	modules := filepath.Join(stage, modulesName, r.Release)
	if r.Modules = kernel.HasModules(modules); r.Modules {
		if err := j.index(ctx, modules); ctx.Err() != nil || hostError(err) {
			return r, nil, err
		} else if err != nil {
			warnings = append(warnings, fmt.Errorf("the modules get no index: %w", err))
		}
	}
	if r.SHA256, err = fileSum(ctx, filepath.Join(stage, imageName)); err != nil {
		return r, warnings, err
	}
	if r.Files, r.Bytes, err = measure(stage); err != nil {
		return r, warnings, err
	}
	if err := r.write(stage); err != nil {
		return r, warnings, err
	}
	if err := ctx.Err(); err != nil {
		return r, warnings, err
	}
	if err := syncAll(stage); err != nil {
		return r, warnings, err
	}
	r.Name, err = j.publish(ctx, stage, r)
	return r, warnings, err
}

// index writes the modules' indexes, where depmod has not.
func (j *job) index(ctx context.Context, dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, "modules.dep.bin")); err == nil {
		return nil
	}
	d, err := initramfs.OpenModules(dir)
	if err != nil {
		return err
	}
	files, err := d.Indexes(ctx, func(done, total int) { j.report(StepIndexing, "modules", int64(done), int64(total)) })
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func measure(dir string) (files int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			files, bytes = files+1, bytes+info.Size()
		}
		return err
	})
	return files, bytes, err
}

// syncAll brings the file system that dir is on to disk: one call is cheaper
// than one for each of thousands of modules.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	return nil
}

// publish renames the finished kernel to a name of its own: its release, which
// replaces what was pulled from the same source before, or, where that is of
// another source, its release and a digest of the source.
func (j *job) publish(ctx context.Context, stage string, r Record) (string, error) {
	w, err := lockWork(ctx, j.dir, publishName, nil)
	if err != nil {
		return "", err
	}
	defer w.unlock(false)
	if err := w.clearStage(); err != nil {
		return "", err
	}
	name := j.nameFor(r)
	path := filepath.Join(j.dir, name)
	if err := replace(stage, path, w.join(stageName)); err != nil {
		return "", fmt.Errorf("put the kernel in its place: %w", bareLink(err))
	}
	syncDir(j.dir)
	return name, nil
}

// nameFor is the directory that a kernel gets.
func (j *job) nameFor(r Record) string {
	path := filepath.Join(j.dir, r.Release)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return r.Release
	}
	if old, err := readRecord(path); err == nil && old.Source == r.Source {
		return r.Release
	}
	return r.Release + "~" + workKey(r.Source)[:8]
}

// replace renames stage to path. What has that name leaves through the stage,
// so that there is no moment without either, or, on a file system that can't
// exchange names, by being moved away first.
func replace(stage, path, away string) error {
	err := os.Rename(stage, path)
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, stage, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := os.Rename(path, away); err != nil {
		return err
	}
	return os.Rename(stage, path)
}

// bareLink drops both paths from an error of a rename.
func bareLink(err error) error {
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}

// fill extracts the kernel into the cache. Only the end of ctx is an error: the
// kernel is there without it.
func (j *job) fill(ctx context.Context, cache *kernel.Cache, res *Result) error {
	if cache == nil {
		return nil
	}
	if _, ok, err := cache.Lookup(res.Path); ok && err == nil {
		return nil
	}
	j.report(StepExtracting, res.Release, 0, 0)
	err := cache.FillContext(ctx, res.Path)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		res.Warnings = append(res.Warnings, err)
	}
	return nil
}
