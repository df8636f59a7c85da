package hostdir

import (
	"errors"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Linux's limits.
const (
	maxName = 255
	maxPath = 4096
)

// noFollow resolves a path that stays below its directory and passes no link.
// A last name that is a link is none to pass with O_PATH|O_NOFOLLOW.
const noFollow = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// status turns what a system call failed with into an answer. ENOSYS would make
// the guest's kernel never ask again.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	if !errors.As(err, &errno) || errno == 0 {
		return fuse.EIO
	}
	switch errno {
	case unix.ENOSYS:
		return fuse.Status(unix.EOPNOTSUPP)
	case unix.EMFILE:
		return fuse.Status(unix.ENFILE)
	}
	return fuse.Status(errno)
}

// again makes a call until no signal interrupts it: Go's runtime sends some.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func openRoot(path string) (fd int, err error) {
	err = again(func() (err error) {
		fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// openBeneath opens a path below dir without passing any link.
func openBeneath(dir int, path string, flags, mode uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Mode: mode, Resolve: noFollow}
	// EAGAIN: something on the way was moved just then.
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, path, &how)
		if err == unix.EINTR || err == unix.EAGAIN && tries < 16 {
			continue
		}
		return fd, err
	}
}

// statAt looks at a name in a directory; a link is looked at itself.
func statAt(dir int, name string, st *unix.Statx_t) error {
	return again(func() error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, st)
	})
}

// statFD looks at what is open.
func statFD(fd int, st *unix.Statx_t) error {
	return again(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, st)
	})
}

func fileOf(st *unix.Statx_t) file {
	return file{unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}
}

// procName is the name of a descriptor in /proc/self/fd. Following that leads
// to the very file, even if it is a link.
func procName(fd int) string { return strconv.Itoa(fd) }

// reopen opens what a descriptor refers to.
func (f *FS) reopen(fd int, flags int) (int, error) {
	for {
		n, err := unix.Openat(f.proc, procName(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// checkName fails for what is no name of a file in a directory.
func checkName(name string) error {
	switch name {
	case "", ".", "..":
		return unix.EINVAL
	}
	if len(name) > maxName {
		return unix.ENAMETOOLONG
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return unix.EINVAL
		}
	}
	return nil
}

// kindOf says of the file system that fd is on whether it is one of the
// kernel's own, and whether birth times there tell files apart.
func (f *FS) kindOf(fd int) (kernel, unborn bool, err error) {
	var fs unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return false, false, err
	}
	switch uint32(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.SELINUX_MAGIC,
		unix.SMACK_MAGIC, unix.EFIVARFS_MAGIC, unix.PSTOREFS_MAGIC, unix.BINFMTFS_MAGIC, unix.NSFS_MAGIC,
		unix.DEVPTS_SUPER_MAGIC, unix.USBDEVICE_SUPER_MAGIC, unix.XENFS_SUPER_MAGIC, unix.RDTGROUP_SUPER_MAGIC,
		configfsMagic, rpcPipefsMagic, nfsdMagic, fusectlMagic:
		return true, false, nil
	case unix.OVERLAYFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		// A copy up gives a file another birth time; the others may let it be set.
		return false, true, nil
	}
	return false, false, nil
}

// Of linux/magic.h and the file systems' own sources, missing in x/sys.
const (
	configfsMagic  = 0x62656570
	rpcPipefsMagic = 0x67596969
	nfsdMagic      = 0x6e667364
	fusectlMagic   = 0x65735543
)
