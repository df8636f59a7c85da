package fs_test

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// tree is a file system in memory: enough of one to see what a device makes of
// requests.
type tree struct {
	fuse.RawFileSystem

	mu      sync.Mutex
	nodes   map[uint64]*node
	last    uint64
	locks   map[uint64]bool // of nodes, exclusive
	unlock  chan struct{}   // closed at the next unlock
	forgets map[uint64]uint64
	resets  int
	closes  int
	active  int // requests inside

	// hook, if not nil, is called for each request by its kind, before anything
	// else. What it returns other than OK is the answer.
	hook func(kind string, cancel <-chan struct{}) fuse.Status
	// options, if not nil, are those of MountOptions.
	options fuse.MountOptions
}

type node struct {
	mode    uint32
	data    []byte
	names   []string
	entries map[string]uint64
	xattr   map[string][]byte
}

func newTree() *tree {
	t := &tree{RawFileSystem: fuse.NewDefaultRawFileSystem(), unlock: make(chan struct{})}
	t.clear()
	return t
}

func (t *tree) clear() {
	t.nodes = map[uint64]*node{fuse.FUSE_ROOT_ID: newNode(syscall.S_IFDIR | 0o755)}
	t.last = fuse.FUSE_ROOT_ID
	t.locks, t.forgets = map[uint64]bool{}, map[uint64]uint64{}
}

func newNode(mode uint32) *node {
	return &node{mode: mode, entries: map[string]uint64{}, xattr: map[string][]byte{}}
}

// in is the beginning of each request; out is its end.
func (t *tree) in(kind string, cancel <-chan struct{}) (status fuse.Status, out func()) {
	t.mu.Lock()
	t.active++
	hook := t.hook
	t.mu.Unlock()
	out = func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.active--
	}
	if hook != nil {
		done := false
		defer func() {
			if !done { // it panics
				out()
			}
		}()
		status = hook(kind, cancel)
		done = true
	}
	return status, out
}

func (t *tree) setHook(f func(kind string, cancel <-chan struct{}) fuse.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hook = f
}

// count reads one of the tree's numbers.
func (t *tree) count(n *int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return *n
}

// SyncFS waits if the hook does.
func (t *tree) SyncFS(cancel <-chan struct{}) fuse.Status {
	status, out := t.in("syncfs", cancel)
	defer out()
	return status
}

func (t *tree) MountOptions() *fuse.MountOptions { return &t.options }

func (t *tree) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active > 0 {
		panic("reset with requests in flight")
	}
	t.resets++
	t.forgets = map[uint64]uint64{}
}

func (t *tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closes++
	return nil
}

// with runs f for a node, under mu.
func (t *tree) with(kind string, cancel <-chan struct{}, id uint64, f func(*node) fuse.Status) fuse.Status {
	status, out := t.in(kind, cancel)
	defer out()
	if status != fuse.OK {
		return status
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	return f(n)
}

func (n *node) attr(id uint64, a *fuse.Attr) {
	a.Ino, a.Mode, a.Size, a.Nlink = id, n.mode, uint64(len(n.data)), 1
}

func (t *tree) entry(id uint64, out *fuse.EntryOut) {
	out.NodeId = id
	t.nodes[id].attr(id, &out.Attr)
}

func (t *tree) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return t.with("lookup", cancel, h.NodeId, func(n *node) fuse.Status {
		id, ok := n.entries[name]
		if !ok {
			return fuse.ENOENT
		}
		t.entry(id, out)
		return fuse.OK
	})
}

func (t *tree) Forget(id, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgets[id] += n
}

func (t *tree) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return t.with("getattr", cancel, in.NodeId, func(n *node) fuse.Status {
		n.attr(in.NodeId, &out.Attr)
		return fuse.OK
	})
}

// add makes an entry of a directory.
func (t *tree) add(dir *node, name string, mode uint32) (uint64, fuse.Status) {
	if _, ok := dir.entries[name]; ok {
		return 0, fuse.Status(syscall.EEXIST)
	}
	if len(t.nodes) > 1000 {
		return 0, fuse.Status(syscall.ENOSPC)
	}
	t.last++
	t.nodes[t.last] = newNode(mode)
	dir.entries[name] = t.last
	dir.names = append(dir.names, name)
	return t.last, fuse.OK
}

func (t *tree) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return t.with("create", cancel, in.NodeId, func(n *node) fuse.Status {
		id, status := t.add(n, name, syscall.S_IFREG|in.Mode)
		if status == fuse.OK {
			t.entry(id, &out.EntryOut)
			out.Fh = id
		}
		return status
	})
}

func (t *tree) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.with("mkdir", cancel, in.NodeId, func(n *node) fuse.Status {
		id, status := t.add(n, name, syscall.S_IFDIR|in.Mode)
		if status == fuse.OK {
			t.entry(id, out)
		}
		return status
	})
}

func (t *tree) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return t.with("symlink", cancel, h.NodeId, func(n *node) fuse.Status {
		id, status := t.add(n, name, syscall.S_IFLNK|0o777)
		if status == fuse.OK {
			t.nodes[id].data = []byte(target)
			t.entry(id, out)
		}
		return status
	})
}

func (t *tree) Readlink(cancel <-chan struct{}, h *fuse.InHeader) (link []byte, status fuse.Status) {
	status = t.with("readlink", cancel, h.NodeId, func(n *node) fuse.Status {
		link = n.data
		return fuse.OK
	})
	return link, status
}

func (t *tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return t.with("open", cancel, in.NodeId, func(*node) fuse.Status {
		out.Fh = in.NodeId
		return fuse.OK
	})
}

func (t *tree) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return t.Open(cancel, in, out)
}

func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	var n int
	status := t.with("read", cancel, in.NodeId, func(f *node) fuse.Status {
		if in.Offset < uint64(len(f.data)) {
			n = copy(buf, f.data[in.Offset:])
		}
		return fuse.OK
	})
	return fuse.ReadResultData(buf[:n]), status
}

func (t *tree) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (written uint32, status fuse.Status) {
	status = t.with("write", cancel, in.NodeId, func(f *node) fuse.Status {
		const most = 4 << 20
		at := in.Offset
		for _, d := range data {
			if at > most || at+uint64(len(d)) > most {
				return fuse.Status(syscall.EFBIG)
			}
			if need := int(at) + len(d); need > len(f.data) {
				f.data = append(f.data, make([]byte, need-len(f.data))...)
			}
			at += uint64(copy(f.data[at:], d))
		}
		written = uint32(at - in.Offset)
		return fuse.OK
	})
	return written, status
}

func (t *tree) list(kind string, cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.with(kind, cancel, in.NodeId, func(n *node) fuse.Status {
		for i := in.Offset; i < uint64(len(n.names)); i++ {
			id := n.entries[n.names[i]]
			e := fuse.DirEntry{Name: n.names[i], Mode: t.nodes[id].mode, Ino: id, Off: i + 1}
			if kind == "readdir" {
				if !out.AddDirEntry(e) {
					break
				}
				continue
			}
			to := out.AddDirLookupEntry(e)
			if to == nil {
				break
			}
			t.entry(id, to)
		}
		return fuse.OK
	})
}

func (t *tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.list("readdir", cancel, in, out)
}

func (t *tree) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.list("readdirplus", cancel, in, out)
}

func (t *tree) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	return t.with("setxattr", cancel, in.NodeId, func(n *node) fuse.Status {
		if len(n.xattr) > 10 {
			return fuse.Status(syscall.ENOSPC)
		}
		n.xattr[name] = append([]byte(nil), data...)
		return fuse.OK
	})
}

func (t *tree) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, to []byte) (size uint32, status fuse.Status) {
	status = t.with("getxattr", cancel, h.NodeId, func(n *node) fuse.Status {
		v, ok := n.xattr[name]
		if !ok {
			return fuse.ENODATA
		}
		if size = uint32(len(v)); len(to) < len(v) {
			return fuse.ERANGE
		}
		copy(to, v)
		return fuse.OK
	})
	return size, status
}

// lock takes a node's lock, or gives it back.
func (t *tree) lock(in *fuse.LkIn) (wait <-chan struct{}, status fuse.Status) {
	status = t.with("setlk", nil, in.NodeId, func(*node) fuse.Status {
		if in.Lk.Typ == syscall.F_UNLCK {
			delete(t.locks, in.NodeId)
			close(t.unlock)
			t.unlock = make(chan struct{})
			return fuse.OK
		}
		if t.locks[in.NodeId] {
			wait = t.unlock
			return fuse.EAGAIN
		}
		t.locks[in.NodeId] = true
		return fuse.OK
	})
	return wait, status
}

func (t *tree) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	_, status := t.lock(in)
	return status
}

func (t *tree) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	status, out := t.in("setlkw", cancel)
	defer out()
	if status != fuse.OK {
		return status
	}
	for {
		wait, status := t.lock(in)
		if status != fuse.EAGAIN {
			return status
		}
		select {
		case <-wait:
		case <-cancel:
			return fuse.EINTR
		}
	}
}
