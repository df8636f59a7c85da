package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// Where the parts of the root are put together, in the initramfs.
const (
	shareDir  = "/.vole/share"
	memoryDir = "/.vole/memory"
	rootDir   = "/.vole/root"
)

// mountVirtioFS mounts the shared directory tag.
func mountVirtioFS(tag, dir string, readOnly bool) error {
	var flags uintptr
	if readOnly {
		flags = unix.MS_RDONLY
	}
	return unix.Mount(tag, dir, "virtiofs", flags, "")
}

// makeRoot makes the file system that commands see. What commands can't do without is
// in a.rootErr afterwards, too.
func (a *agent) makeRoot() []string {
	var p problems
	c := &a.Config
	var r rescued
	if c.Root != nil {
		r2, err := a.enterRoot(c.Root, &p)
		if err != nil {
			a.rootErr = fmt.Errorf("the guest has no root file system: %w", err)
			p = append(p, a.rootErr.Error())
		}
		r = r2
	}
	mountSystem(&p)
	r.restore(&p)
	if c.Root != nil && a.rootErr == nil {
		bindModules(string(c.Root.ModulesDir), &p)
	}
	for _, m := range c.Mounts {
		dir := string(m.Dir)
		err := makeDir(dir, 0o755)
		if err == nil {
			err = a.Share(m.Tag, dir, m.ReadOnly)
		}
		p.check(err, "mount the share %s on %s", m.Tag, dir)
	}
	if c.Hostname != "" {
		p.check(unix.Sethostname([]byte(c.Hostname)), "name the guest %s", c.Hostname)
	}
	if c.CorePattern != "" {
		p.check(setCorePattern(c.CorePattern), "set the core pattern")
	}
	if c.Net != nil && len(c.Net.DNS) > 0 {
		p.check(setResolver(c.Net.DNS, r.resolver), "name the DNS servers in %s", resolvConf)
	}
	return p
}

// enterRoot makes the share, or the overlay on it, the root directory of this
// process. Errors are those without which there is no root.
func (a *agent) enterRoot(root *wire.Root, p *problems) (rescued, error) {
	var none rescued
	share := rootDir
	if root.Overlay {
		share = shareDir
	}
	for _, dir := range []string{share, rootDir} {
		if err := makeDir(dir, 0o755); err != nil {
			return none, err
		}
	}
	if err := a.Share(root.Tag, share, false); err != nil {
		return none, fmt.Errorf("mount the share %s: %w", root.Tag, err)
	}
	var binds []bind
	if root.Overlay {
		if err := mountOverlay(); err != nil {
			return none, err
		}
		var err error
		if binds, err = openBinds(root, p); err != nil {
			return none, err
		}
	}
	// What switch_root(8) does: the initramfs stays below, out of sight.
	err := unix.Chdir(rootDir)
	if err == nil {
		err = unix.Mount(".", "/", "", unix.MS_MOVE, "")
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	if err != nil {
		return none, fmt.Errorf("enter it: %w", err)
	}
	for _, b := range binds {
		p.check(b.mount(), "make %s writable", b.path)
	}
	return rescue(), nil
}

// mountOverlay lays memory over the share.
func mountOverlay() error {
	if err := makeDir(memoryDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("vole", memoryDir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	for _, dir := range []string{memoryDir + "/upper", memoryDir + "/work"} {
		if err := makeDir(dir, 0o755); err != nil {
			return err
		}
	}
	const dirs = "lowerdir=" + shareDir + ",upperdir=" + memoryDir + "/upper,workdir=" + memoryDir + "/work"
	// What needs file handles of the share, which it has none of, is off without a
	// warning; and memory has nothing to sync. Older kernels don't know all of that.
	err := unix.Mount("vole", rootDir, "overlay", 0, dirs+",index=off,xino=off,metacopy=off,volatile")
	if err == unix.EINVAL {
		err = unix.Mount("vole", rootDir, "overlay", 0, dirs)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return nil
}

// bind is a directory or file of the share that the overlay does not hide.
type bind struct {
	path string
	fd   int // of the share's
}

// openBinds opens what is to be bound, as the share names it: links in it lead to
// places in it.
func openBinds(root *wire.Root, p *problems) ([]bind, error) {
	if len(root.Writable) == 0 {
		return nil, nil
	}
	out, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(out)
	if err := unix.Chroot(shareDir); err != nil {
		return nil, err
	}
	var binds []bind
	for _, w := range root.Writable {
		path := string(w)
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			p.check(err, "make %s writable", path)
			continue
		}
		binds = append(binds, bind{path, fd})
	}
	if err := unix.Fchdir(out); err != nil {
		return nil, err
	}
	return binds, unix.Chroot(".")
}

// mount puts what was opened where it stands, and closes it.
func (b bind) mount() error {
	defer unix.Close(b.fd)
	return mountFD(b.fd, b.path)
}

// mountFD mounts the file or directory that is open as fd on target as well.
func mountFD(fd int, target string) error {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// bindModules makes the directory with the kernel's modules appear where programs
// look for it.
func bindModules(dir string, p *problems) {
	target := "/lib/modules/" + release()
	if dir == "" || dir == target {
		return
	}
	err := os.MkdirAll(target, 0o755)
	if err == nil {
		err = unix.Mount(dir, target, "", unix.MS_BIND|unix.MS_REC, "")
	}
	p.check(err, "show %s as %s", dir, target)
}

// setCorePattern has processes that crash leave their memory, as the pattern says.
func setCorePattern(pattern string) error {
	err := writeFile("/proc/sys/kernel/core_pattern", pattern)
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	return errors.Join(err, unix.Setrlimit(unix.RLIMIT_CORE, &all))
}
