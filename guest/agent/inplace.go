package agent

import (
	"bytes"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// maxAtOnce is how much of what is written in place goes in one write, in bytes: what is
// longer goes in pieces of that size. A kernel's policy has some MiB.
const maxAtOnce = 16 << 20

// Magic numbers of file systems that package unix lacks, of Linux's fs/configfs/mount.c,
// fs/fuse/control.c, fs/nfsd/nfsctl.c and include/uapi/linux/magic.h.
const (
	configfsMagic = 0x62656570
	fusectlMagic  = 0x65735543
	nfsdMagic     = 0x6e667364
	xenfsMagic    = 0xabba1974
)

// inPlace says whether a file that is there can only be written as it is, since what is
// written to it is a message to the kernel or to another program. A directory is an error.
func inPlace(name string) (bool, error) {
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil {
		return false, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return false, unix.EISDIR
	case unix.S_IFREG:
		var fs unix.Statfs_t
		return unix.Statfs(name, &fs) == nil && kernels(int64(fs.Type)), nil
	}
	return true, nil
}

// kernels says whether a file system has no files but the kernel's.
func kernels(magic int64) bool {
	switch magic {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
		unix.TRACEFS_MAGIC, unix.DEBUGFS_MAGIC, unix.SECURITYFS_MAGIC, unix.AAFS_MAGIC, unix.SELINUX_MAGIC,
		unix.SMACK_MAGIC, unix.BINFMTFS_MAGIC, unix.RDTGROUP_SUPER_MAGIC, unix.EFIVARFS_MAGIC, unix.PSTOREFS_MAGIC,
		unix.NSFS_MAGIC, unix.BINDERFS_SUPER_MAGIC, configfsMagic, fusectlMagic, nfsdMagic, xenfsMagic:
		return true
	}
	return false
}

// writeInPlace does OpWrite for such a file. Before all of the content is there nothing is
// written, if that is not more than maxAtOnce, and then at once: such files mind where a
// write ends. Owner and mode stay.
func (c *command) writeInPlace(name string) (*wire.Exited, error) {
	var f *os.File
	stop := func() {
		if f != nil {
			_ = f.SetWriteDeadline(past)
		}
	}
	return c.transfer(stop, func(stream *os.File) error {
		var content bytes.Buffer
		for came := int64(0); ; content.Reset() {
			n, err := io.CopyN(&content, onlyReader{stream}, maxAtOnce)
			came += n
			ended := err == io.EOF
			if ended {
				err = c.whole(0, came)
			}
			if err != nil {
				return err
			}
			if f == nil {
				file, err := openInPlace(name)
				if err != nil {
					return err
				}
				defer file.Close()
				c.mu.Lock()
				f = file
				if c.aborted {
					stop()
				}
				c.mu.Unlock()
			}
			if content.Len() > 0 {
				if _, err := f.Write(content.Bytes()); err != nil {
					return err
				}
			}
			if ended {
				return nil
			}
		}
	})
}

// openInPlace opens a file as a shell does that writes to it, but waits neither for who reads
// a pipe nor for a terminal's line.
func openInPlace(name string) (*os.File, error) {
	flags := unix.O_WRONLY | unix.O_TRUNC | unix.O_CLOEXEC | unix.O_NOCTTY
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nil, err
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFIFO || kind == unix.S_IFCHR {
		flags |= unix.O_NONBLOCK
	}
	fd, err := unix.Open(name, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
