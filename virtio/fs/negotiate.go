package fs

import (
	"log"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// always are the flags of INIT that ask nothing of a file system.
const always uint64 = fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO |
	fuse.CAP_PARALLEL_DIROPS | fuse.CAP_MAX_PAGES | fuse.CAP_AUTO_INVAL_DATA | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_ASYNC_DIO

// grantable are the flags that a file system may ask for. Not among them are those
// that need a mount in this process, a shared memory region, notifications, or
// extensions behind requests.
const grantable = always | fuse.CAP_POSIX_LOCKS | fuse.CAP_FLOCK_LOCKS | fuse.CAP_CACHE_SYMLINKS | fuse.CAP_POSIX_ACL |
	fuse.CAP_HANDLE_KILLPRIV | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT | fuse.CAP_DONT_MASK |
	fuse.CAP_WRITEBACK_CACHE | fuse.CAP_EXPLICIT_INVAL_DATA | fuse.CAP_DIRECT_IO_ALLOW_MMAP |
	fuse.CAP_EXPORT_SUPPORT | fuse.CAP_IOCTL_DIR | fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_SUBMOUNTS

// mountOptions are what the library negotiates by.
func (d *Device) mountOptions(fsys FileSystem) *fuse.MountOptions {
	var o fuse.MountOptions
	if n, ok := fsys.(Negotiating); ok {
		o = *n.MountOptions()
	}
	o.Debug, o.SingleThreaded, o.RememberInodes, o.IDMappedMount = false, false, false, false
	o.MaxWrite, o.MaxReadAhead = MaxData, 0
	o.MaxBackground, o.CongestionThreshold = background, 0
	o.ExtraCapabilities |= always
	o.DisabledCapabilities |= ^grantable
	o.Logger = log.New(&d.log, "", 0)
	o.PanicHandler = d.panicked
	return &o
}
