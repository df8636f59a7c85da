package hostdir

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FS is a share. Its methods of [fuse.RawFileSystem] may be called from any
// number of goroutines; each may wait as long as the host's file system does,
// and no longer than that but for SetLkw, whose wait has a bound, and for SyncFS.
//
// The strings and buffers handed in must not change during a call.
type FS struct {
	fuse.RawFileSystem // what is not implemented: ENOSYS

	dir    string
	opts   Options
	limits Limits
	log    *slog.Logger
	rules  *rule             // of the root
	hidden map[file]struct{} // what stood at the hidden paths

	uid, gid uint32 // of this process, for files
	umask    uint32 // of this process
	switches bool   // this process may create files as any user
	proc     int    // /proc/self/fd (O_PATH)
	seed     maphash.Seed

	// renames is held for writing while names move, tables included. Who does
	// not find a node where it was looks again under it.
	renames sync.RWMutex

	mu      sync.Mutex // guards all below and the nodes' fields that say so
	nodes   map[uint64]*inode
	keys    map[key]*inode
	root    *inode
	lastID  uint64
	session uint64
	pins    int // of all nodes
	lru     lru
	devs    map[uint64]uint64 // device -> index, for inode numbers
	closed  bool
	changes
	// interrupted is closed, and another one made, by Interrupt.
	interrupted chan struct{}

	handleMu   sync.RWMutex
	handles    map[uint64]*handle
	lastHandle uint64
	owners     int // of record locks: each has a descriptor

	waits chan struct{} // a token for each request that waits for a lock
	syncs *syncs

	complaints atomic.Int64
}

// New opens a share. An error is one sentence; it wraps [ErrOptions] or
// [ErrHost]. Close lets go of the share.
func New(o Options) (*FS, error) {
	if o.Cache > CacheAlways || o.Locks > LocksHost {
		return nil, fmt.Errorf("hostdir: Cache is %d and Locks %d: no such modes: %w", o.Cache, o.Locks, ErrOptions)
	}
	if len(o.Writable) > 0 && !o.ReadOnly {
		return nil, fmt.Errorf("hostdir: Writable names %s in a share that is writable everywhere, ReadOnly is not set: %w", o.Writable[0], ErrOptions)
	}
	limits, err := o.Limits.settle()
	if err != nil {
		return nil, err
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		opts:          o, limits: limits, log: o.Logger,
		uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid()),
		switches:    maySwitch(),
		proc:        -1,
		seed:        maphash.MakeSeed(),
		handles:     map[uint64]*handle{},
		waits:       make(chan struct{}, limits.MaxLockWaits),
		interrupted: make(chan struct{}),
		syncs:       newSyncs(),
	}
	if o.Owner != nil {
		owner := *o.Owner
		f.opts.Owner = &owner
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.open(); err != nil {
		return nil, err
	}
	if err := f.host(); err != nil {
		_ = f.Close()
		return nil, err
	}
	if f.rules, f.hidden, err = f.rulesOf(&o); err != nil {
		_ = f.Close()
		return nil, err
	}
	f.root.rule = f.rules
	f.root.key.rw = f.rules.writable
	return f, nil
}

// open opens the root.
func (f *FS) open() error {
	dir, err := filepath.Abs(f.opts.Dir)
	if err == nil && f.opts.Dir == "" {
		err = unix.ENOENT
	}
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	var fd int
	if err == nil {
		fd, err = openRoot(dir)
	}
	if err != nil {
		return fmt.Errorf("hostdir: %q: %w: %w", f.opts.Dir, ErrOptions, err)
	}
	f.dir = dir
	f.root = &inode{id: fuse.FUSE_ROOT_ID, mode: unix.S_IFDIR, fd: fd, lookups: 1}
	f.forgetAll()
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		_ = f.Close()
		return fmt.Errorf("hostdir: %s: %w: statx: %w", dir, ErrHost, err)
	}
	kernel, unborn, err := f.kindOf(fd)
	if err == nil && kernel {
		err = fmt.Errorf("it is the host kernel's own (proc, sysfs and the like), not a directory of files")
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("hostdir: %s: %w: %w", dir, ErrOptions, err)
	}
	f.root.unborn = unborn
	f.root.identify(&st, false)
	f.devs[f.root.key.dev] = 0
	return nil
}

// host looks whether this host has what it takes.
func (f *FS) host() error {
	fd, err := openBeneath(f.root.fd, ".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("hostdir: %w: openat2 fails with %q: it needs Linux 5.6 or later and a sandbox that allows it", ErrHost, err)
	}
	_ = unix.Close(fd)
	f.proc, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	var fs unix.Statfs_t
	if err == nil {
		err = unix.Fstatfs(f.proc, &fs)
	}
	if err == nil && fs.Type != unix.PROC_SUPER_MAGIC {
		err = unix.ENOTDIR
	}
	if err != nil {
		return fmt.Errorf("hostdir: %w: /proc is not mounted here: %w", ErrHost, err)
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("hostdir: %w: %w", ErrHost, err)
	}
	for line := range bytes.Lines(text) {
		if v, ok := bytes.CutPrefix(line, []byte("Umask:")); ok {
			mask, err := strconv.ParseUint(string(bytes.TrimSpace(v)), 8, 32)
			if err != nil {
				return fmt.Errorf("hostdir: %w: /proc/self/status: %w", ErrHost, err)
			}
			f.umask = uint32(mask)
		}
	}
	return nil
}

// forgetAll makes the tables new, with only the root in them.
func (f *FS) forgetAll() {
	f.nodes = map[uint64]*inode{fuse.FUSE_ROOT_ID: f.root}
	f.keys = map[key]*inode{}
	if f.devs == nil {
		f.devs = map[uint64]uint64{}
	}
	f.forgetChanges()
	f.lastID = max(f.lastID, fuse.FUSE_ROOT_ID)
	f.session++
}

// Reset forgets every node and handle: the guest's session is over. No request
// may be in flight. Node ids and handles of the next session are new ones.
func (f *FS) Reset() {
	f.handleMu.Lock()
	handles := f.handles
	f.handles = map[uint64]*handle{}
	held.Add(-int64(len(handles)))
	f.handleMu.Unlock()
	for _, h := range handles {
		f.unlinkHandle(h)
		f.unref(h)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, in := range f.nodes {
		f.closeLockOwners(in)
		if in == f.root {
			continue
		}
		in.gone = true
		f.closeNode(in)
	}
	f.root.kids, f.root.lack = 0, nil
	f.forgetAll()
}

// Close is Reset for good; later requests fail with ENOTCONN. A second Close
// does nothing. It never fails.
func (f *FS) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	for _, t := range []*time.Timer{f.timer, f.teller} {
		if t != nil {
			t.Stop()
		}
	}
	f.mu.Unlock()
	f.Interrupt()
	f.Reset()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pins == 0 {
		f.closeRoot()
	}
	return nil
}

// closeRoot closes what every request may use. f.mu is held, nothing is pinned.
func (f *FS) closeRoot() {
	if f.root.fd >= 0 {
		_ = unix.Close(f.root.fd)
		f.root.fd = -1
	}
	if f.proc >= 0 {
		_ = unix.Close(f.proc)
		f.proc = -1
	}
}

// Dir is the directory shared, its links followed.
func (f *FS) Dir() string { return f.dir }

// Describe says for a report what is shared (virtio.Describing): the directory and those
// below it that may be changed in a share that is read-only.
func (f *FS) Describe() map[string]any {
	m := map[string]any{"dir": f.dir, "ro": f.opts.ReadOnly, "cache": f.opts.Cache.String()}
	if len(f.opts.Writable) > 0 {
		m["rw"] = slices.Clone(f.opts.Writable)
	}
	return m
}

// String implements [fuse.RawFileSystem].
func (f *FS) String() string { return "hostdir:" + f.dir }

// Stats are the sizes of the tables.
type Stats struct {
	Inodes  int // nodes that the guest or another node knows, the root included
	Open    int // O_PATH descriptors: of directories, and of files whose name was taken away
	Handles int // open files and directories, and owners of record locks
}

// Stats may be called at any time.
func (f *FS) Stats() Stats {
	f.mu.Lock()
	s := Stats{Inodes: len(f.nodes), Open: f.lru.n}
	f.mu.Unlock()
	f.handleMu.RLock()
	s.Handles = len(f.handles) + f.owners
	f.handleMu.RUnlock()
	return s
}

// MountOptions is what a server of go-fuse should be made with for this share:
// the features of the protocol that it relies on. The caller may add to it. A
// mount through /dev/fuse also needs the options default_permissions and
// allow_other, which virtio-fs has by itself.
func (f *FS) MountOptions() *fuse.MountOptions {
	o := &fuse.MountOptions{
		// Who may not have set-user-ID bits kept is said with each request, and
		// the kernel need not ask for security.capability before each write.
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ATOMIC_O_TRUNC |
			fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_SETXATTR_EXT | fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		EnableLocks:   f.opts.Locks == LocksHost,
		DisableXAttrs: !f.opts.Xattr,
		EnableAcl:     f.opts.Xattr,
	}
	if f.opts.Xattr {
		// The default ACL of a directory stands in for the umask.
		o.ExtraCapabilities |= fuse.CAP_DONT_MASK
	}
	if f.opts.Cache != CacheNone {
		o.EnableSymlinkCaching = true
	}
	return o
}

// complain tells the log of a guest that breaks the protocol, a few times.
func (f *FS) complain(msg string, args ...any) {
	const enough = 8
	if f.complaints.Add(1) <= enough {
		f.log.Log(context.Background(), slog.LevelWarn, "hostdir: "+msg, append(args, "dir", f.dir)...)
	}
}
