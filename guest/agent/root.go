package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

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
	var e entered
	if c.Root != nil {
		var err error
		if e, err = a.enterRoot(c.Root, &p); err != nil {
			a.rootErr = fmt.Errorf("the guest has no root file system: %w", err)
			p = append(p, a.rootErr.Error())
		}
	}
	mountSystem(!e.whole, &p)
	a.bind(e.late, &p)
	a.shares.find(e.whole)
	a.shares.makeSystem(&p)
	e.restore(&a.shares, &p)
	if c.Root != nil && a.rootErr == nil {
		a.shares.bindModules(string(c.Root.ModulesDir), &p)
	}
	for _, m := range c.Mounts {
		dir := string(m.Dir)
		err := a.shares.makeDir(dir, 0o755)
		if err == nil {
			err = a.Share(m.Tag, dir, m.ReadOnly)
		}
		if err != nil {
			a.lack("the share %s can't be mounted on %s: %w", m.Tag, dir, err)
		} else if !m.ReadOnly {
			a.shares.add(dir)
		}
	}
	if c.Hostname != "" {
		p.check(unix.Sethostname([]byte(c.Hostname)), "name the guest %s", c.Hostname)
	}
	if c.CorePattern != "" {
		p.check(setCorePattern(c.CorePattern), "set the core pattern")
	}
	if c.Net != nil && len(c.Net.DNS) > 0 {
		p.check(a.shares.setResolver(c.Net.DNS, e.resolver), "name the DNS servers in %s", resolvConf)
	}
	return p
}

// lack notes what commands can't do without: what they write would be lost.
func (a *agent) lack(format string, args ...any) {
	if a.lacks == nil {
		a.lacks = fmt.Errorf(format, args...)
	}
}

// entered is what enterRoot leaves to be done.
type entered struct {
	rescued
	late  []bind // to be mounted in the system's own file systems
	whole bool   // all of the root is the host's to change
}

// enterRoot makes the share, or the overlay on it, the root directory of this
// process. Errors are those without which there is no root.
func (a *agent) enterRoot(root *wire.Root, p *problems) (entered, error) {
	var none entered
	whole := slices.Contains(root.Writable, "/")
	share := rootDir
	if root.Overlay && !whole {
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
	if share == shareDir {
		if err := mountOverlay(); err != nil {
			return none, err
		}
	}
	early, late, err := a.openBinds(root, share, p)
	if err != nil {
		return none, err
	}
	// What switch_root(8) does: the initramfs stays below, out of sight.
	err = unix.Chdir(rootDir)
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
	a.bind(early, p)
	return entered{rescue(), late, whole}, nil
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
	return layOver(shareDir, memoryDir, rootDir)
}

// layOver mounts an overlay of lower and, over it, what is in the directories upper
// and work of memory.
func layOver(lower, memory, dir string) error {
	dirs := "lowerdir=" + lower + ",upperdir=" + memory + "/upper,workdir=" + memory + "/work"
	// What needs file handles of the share, which it has none of, is off without a
	// warning; and memory has nothing to sync. Older kernels don't know all of that.
	err := unix.Mount("vole", dir, "overlay", 0, dirs+",index=off,xino=off,metacopy=off,volatile")
	if err == unix.EINVAL {
		err = unix.Mount("vole", dir, "overlay", 0, dirs)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return nil
}

// bind is a directory or file of the share that nothing of the guest's own hides.
type bind struct {
	path     string
	fd       int // of the share's
	readOnly bool
}

// late says whether what is bound at path has to wait for the system's own file systems,
// since it is in one of them.
func late(path string) bool {
	for _, dir := range []string{"/run", "/dev/shm"} {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}

// inOwnMemory is the path without links of what is, or would be, below /run or /dev/shm, if
// those are the guest's own there; otherwise "". name is clean and absolute.
func inOwnMemory(name string) string {
	missing := ""
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	for err == unix.ENOENT && name != "/" {
		missing = path.Join(path.Base(name), missing)
		name = path.Dir(name)
		fd, err = unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return ""
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if real = path.Join(real, missing); err != nil || !late(real) || real == "/run" || real == "/dev/shm" {
		return ""
	}
	return real
}

// leads says whether something is mounted below dir that the configuration names.
func (a *agent) leads(dir string) bool {
	below := func(name wire.Text) bool { return strings.HasPrefix(string(name), dir+"/") }
	for _, m := range a.Config.Mounts {
		if below(m.Dir) {
			return true
		}
	}
	root := a.Config.Root
	return root != nil && (slices.ContainsFunc(root.Writable, below) || slices.ContainsFunc(root.Visible, below))
}

// openBinds opens what is to be bound, as the share names it: links in it lead to
// places in it. What contains others comes before them.
func (a *agent) openBinds(root *wire.Root, share string, p *problems) (early, lates []bind, err error) {
	var all []bind
	for _, w := range root.Writable {
		if w != "/" {
			all = append(all, bind{path: string(w)})
		}
	}
	for _, v := range root.Visible {
		all = append(all, bind{path: string(v), readOnly: true})
	}
	if len(all) == 0 {
		return nil, nil, nil
	}
	slices.SortStableFunc(all, func(x, y bind) int { return strings.Compare(x.path, y.path) })
	out, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(out)
	if err := unix.Chroot(share); err != nil {
		return nil, nil, err
	}
	for _, b := range all {
		if b.fd, err = unix.Open(b.path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			a.unbound(b, err, p)
			continue
		}
		if late(b.path) {
			lates = append(lates, b)
		} else {
			early = append(early, b)
		}
	}
	if err := unix.Fchdir(out); err != nil {
		return nil, nil, err
	}
	return early, lates, unix.Chroot(".")
}

// bind mounts what was opened where it stands, and closes it.
func (a *agent) bind(binds []bind, p *problems) {
	for _, b := range binds {
		err := b.mount()
		unix.Close(b.fd)
		switch {
		case err != nil:
			a.unbound(b, err, p)
		case !b.readOnly:
			a.shares.dirs = append(a.shares.dirs, b.path)
		}
	}
}

// unbound notes that a bind has failed.
func (a *agent) unbound(b bind, err error, p *problems) {
	if b.readOnly {
		p.check(err, "show %s", b.path)
		return
	}
	a.lack("%s can't be made writable in the guest: %w", b.path, err)
}

// mount mounts b. In the system's own file systems there may be no place for it yet.
func (b bind) mount() error {
	err := mountFD(b.fd, b.path)
	if err == unix.ENOENT && late(b.path) {
		if err = makeDir(b.path, 0o755); err == nil {
			err = mountFD(b.fd, b.path)
		}
	}
	return err
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
func (s *shares) bindModules(dir string, p *problems) {
	target := "/lib/modules/" + release()
	if dir == "" || dir == target {
		return
	}
	err := s.makeDir(target, 0o755)
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
