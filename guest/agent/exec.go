package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// defaultPath is where programs are looked for without a PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// starter starts processes. The umask is the whole process's, so it is one at a time.
type starter struct {
	sync.Mutex
	umask int // as it is, plus one; 0 is not known
}

// mask sets the umask; the lock is held.
func (s *starter) mask(umask int) {
	if s.umask != umask+1 {
		unix.Umask(umask)
		s.umask = umask + 1
	}
}

// busyBound is how long a program is waited for that is open for writing: a process
// that is just being started may have inherited the descriptor for a moment.
const busyBound = 2 * time.Second

// fork starts the command's program with these standard files.
func (c *command) fork(files [3]int) (*child, error) {
	for i := range files {
		if files[i] < 0 {
			return nil, fmt.Errorf("standard file %d is missing: %w", i, unix.EINVAL)
		}
	}
	attr := &syscall.ProcAttr{
		Dir:   string(c.Dir),
		Env:   wire.Strings(c.Env),
		Files: []uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	for i, kind := range c.Files {
		if kind == wire.FileTTY {
			attr.Sys.Setctty, attr.Sys.Ctty = true, i
		}
	}
	if c.UID != 0 || c.GID != 0 || len(c.Groups) > 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	argv := wire.Strings(c.Args)
	if len(argv) == 0 {
		argv = []string{string(c.Path)}
	}
	c.makeRuntimeDir()
	c.makeTempDir()
	c.a.starts.Lock()
	defer c.a.starts.Unlock()
	c.a.starts.mask(int(c.Umask & 0o777))
	return c.find(attr, argv)
}

// find starts the first program of the name Path that can be, as execvp(3) does.
func (c *command) find(attr *syscall.ProcAttr, argv []string) (*child, error) {
	name := string(c.Path)
	if name == "" {
		return nil, fmt.Errorf("a command has no name: %w", unix.ENOENT)
	}
	if strings.Contains(name, "/") {
		child, err := c.try(name, attr, argv)
		if err != nil {
			return nil, c.why(name, attr, err)
		}
		return child, nil
	}
	var denied error
	for dir := range strings.SplitSeq(searchPath(attr.Env), ":") {
		file := path.Join(dir, name)
		if dir == "" {
			file = "./" + name
		}
		var st unix.Stat_t
		if unix.Stat(within(attr.Dir, file), &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		child, err := c.try(file, attr, argv)
		switch {
		case err == nil:
			return child, nil
		case errors.Is(err, unix.EACCES):
			if denied == nil {
				denied = c.why(file, attr, err)
			}
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			if denied == nil {
				denied = c.why(file, attr, err)
			}
		default:
			return nil, c.why(file, attr, err)
		}
	}
	if denied != nil {
		return nil, denied
	}
	if err := checkDir(attr.Dir); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%s: no such program in the guest's PATH: %w", name, unix.ENOENT)
}

// try starts file; one in a format that the kernel does not know is the shell's.
func (c *command) try(file string, attr *syscall.ProcAttr, argv []string) (*child, error) {
	child, err := c.start(file, attr, argv)
	if err == unix.ENOEXEC {
		return c.start("/bin/sh", attr, append([]string{"/bin/sh", file}, argv[1:]...))
	}
	return child, err
}

func (c *command) start(file string, attr *syscall.ProcAttr, argv []string) (*child, error) {
	wait := time.Millisecond
	for deadline := time.Now().Add(busyBound); ; wait *= 2 {
		child, err := c.a.children.start(func() (int, error) { return syscall.ForkExec(file, argv, attr) })
		if err != unix.ETXTBSY || time.Now().After(deadline) {
			return child, err
		}
		time.Sleep(wait)
	}
}

// why is the reason why a program did not start. The kernel has one number for
// several of them.
func (c *command) why(file string, attr *syscall.ProcAttr, err error) error {
	if dir := checkDir(attr.Dir); dir != nil {
		return dir
	}
	var st unix.Stat_t
	switch err {
	case unix.EACCES:
		// A program that can't be there shows whether the directory was to blame.
		if _, probe := syscall.ForkExec("", []string{""}, attr); probe == unix.EACCES {
			return &blamed{wire.CauseDir, fmt.Errorf("the working directory %s is closed to user %d: %w", attr.Dir, c.UID, err)}
		}
		if unix.Stat(within(attr.Dir, file), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("%s is a directory: %w", file, err)
		}
	case unix.ENOENT:
		if unix.Stat(within(attr.Dir, file), &st) == nil {
			return fmt.Errorf("%s: its interpreter or loader is missing: %w", file, err)
		}
	case unix.EPERM:
		return fmt.Errorf("run %s as user %d: %w", file, c.UID, err)
	}
	return fmt.Errorf("%s: %w", file, err)
}

// blamed is an error that is not the program's.
type blamed struct {
	cause wire.Cause
	error
}

func (b *blamed) Unwrap() error { return b.error }

// checkDir finds fault with a working directory.
func checkDir(dir string) error {
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return &blamed{wire.CauseDir, fmt.Errorf("the working directory %s: %w", dir, err)}
	}
	return nil
}

// within is name as seen from dir.
func within(dir, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return dir + "/" + name
}

// searchPath is the PATH of an environment.
func searchPath(env []string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			return value
		}
	}
	return defaultPath
}

// variable is the value of one in the command's environment, "" if it has none.
func (c *command) variable(name string) string {
	for _, kv := range c.Env {
		if value, ok := strings.CutPrefix(string(kv), name+"="); ok {
			return value
		}
	}
	return ""
}

// makeRuntimeDir makes the directory in /run that a user has from its login, if the
// environment promises it.
func (c *command) makeRuntimeDir() {
	want := fmt.Sprintf("/run/user/%d", c.UID)
	if c.variable("XDG_RUNTIME_DIR") != want {
		return
	}
	c.a.starts.Lock()
	defer c.a.starts.Unlock()
	c.a.starts.mask(0o022) // what is above it may be made, too
	// It may have been made for what is mounted below it.
	if c.a.shares.makeDir(want, 0o700) == nil && !c.a.shares.have(want) {
		_ = unix.Chown(want, int(c.UID), int(c.GID))
		_ = unix.Chmod(want, 0o700)
	}
}

// makeTempDir makes the directory for temporary files that the environment names, if it
// would be in memory of the guest's own, which hides the host's. All can write to it.
func (c *command) makeTempDir() {
	const perm = 0o1777
	dir := c.variable("TMPDIR")
	if !path.IsAbs(dir) {
		return
	}
	dir = inOwnMemory(path.Clean(dir))
	if dir == "" || c.a.shares.have(dir) {
		return
	}
	c.a.starts.Lock()
	defer c.a.starts.Unlock()
	c.a.starts.mask(0o022) // what is above it may be made, too
	if c.a.shares.makeDir(dir, perm) != nil || !c.a.leads(dir) {
		return
	}
	// It was made for what is mounted below it.
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Mode == unix.S_IFDIR|0o755 && st.Uid == 0 {
		_ = unix.Chmod(dir, perm)
	}
}

// errno is the number of an error, 0 if it has none.
func errno(err error) uint32 {
	var e syscall.Errno
	var p *fs.PathError
	if errors.As(err, &e) {
		return uint32(e)
	}
	if errors.As(err, &p) && errors.As(p.Err, &e) {
		return uint32(e)
	}
	return 0
}
