package agent

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// shares are the mounts in which every change is the host's. What the agent makes for
// the guest alone must not be made there.
type shares struct {
	dirs []string // where they are mounted
	ids  []string // of the mounts, as /proc has them; "" is one that is not known
}

// find learns the mounts at dirs, and of the root if all of it is the host's. It takes
// /proc.
func (s *shares) find(root bool) {
	dirs := s.dirs
	if root {
		dirs = append([]string{"/"}, dirs...)
	}
	s.dirs = nil
	for _, dir := range dirs {
		s.add(dir)
	}
}

// add notes what is mounted on dir.
func (s *shares) add(dir string) {
	s.dirs = append(s.dirs, dir)
	id := ""
	if fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
		id = mountID(fd)
		unix.Close(fd)
	}
	s.ids = append(s.ids, id)
}

// mountID is the number of the mount that fd is on, "" if there is no /proc.
func mountID(fd int) string {
	text, err := readFile("/proc/self/fdinfo/"+strconv.Itoa(fd), 4<<10)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id)
		}
	}
	return ""
}

// have says whether name, or what it would be made in, is in one of them; also if that
// can't be found out.
func (s *shares) have(name string) bool {
	if len(s.ids) == 0 {
		return false
	}
	for {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			id := mountID(fd)
			unix.Close(fd)
			for _, known := range s.ids {
				if id == "" || known == "" || id == known {
					return true
				}
			}
			return false
		}
		if err != unix.ENOENT && err != unix.ENOTDIR || name == "/" {
			return true
		}
		name = path.Dir(name)
	}
}

// makeDir is the function makeDir, but makes nothing in a share.
func (s *shares) makeDir(name string, perm uint32) error {
	var st unix.Stat_t
	if unix.Stat(name, &st) == nil {
		return nil
	}
	if s.have(name) {
		return fmt.Errorf("%s is missing, and is not made in a directory of the host's that is writable", name)
	}
	return makeDir(name, perm)
}

// makeSystem makes what tmpfiles.d would have made.
func (s *shares) makeSystem(p *problems) {
	p.check(s.makeDir("/run/lock", 0o1777), "make /run/lock")
	p.check(s.makeTmp(), "make /tmp")
}

// makeTmp sees to it that all can write to /tmp, unless it is the host's: then it is as
// it is there.
func (s *shares) makeTmp() error {
	const perm = 0o1777
	var st unix.Stat_t
	err := unix.Stat("/tmp", &st)
	switch {
	case err == unix.ENOENT:
		return s.makeDir("/tmp", perm)
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o7777 != perm && !s.have("/tmp"):
		return unix.Chmod("/tmp", perm)
	}
	return err
}
