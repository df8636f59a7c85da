package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// key tells nodes apart. A directory that is mounted twice is two nodes (a
// guest's kernel can't have one directory in two places), a file is one. So is
// one that has a name where writing is allowed and another where it is not two:
// what may be done with a node depends on nothing but the node.
type key struct {
	file
	mount uint64 // of directories
	rw    bool
}

// place is where a node was last seen.
type place struct {
	parent *inode
	name   string
}

// maxPlaces bounds how many names of a file with many links are kept.
const maxPlaces = 8

// inode is a node that the guest knows, or that one it knows is below of.
type inode struct {
	id         uint64
	generation uint64
	key        key
	mode       uint32 // the kind only (S_IFMT)
	birth      unix.StatxTimestamp
	born       bool // birth is known
	unborn     bool // birth times tell nothing on this file system
	hidden     bool // shows as an empty directory
	rule       *rule

	// Below: guarded by FS.mu.

	lookups uint64 // that the guest has not forgotten
	pins    int    // requests at work with it
	kids    int    // places of other nodes
	place          // the last seen
	more    []place
	fd      int // O_PATH, of directories and of files whose name was taken away, or -1
	open    *handle
	seen    version // of the content that the guest's page cache may hold
	owners  map[uint64]*lockOwner
	gone    bool // from the tables

	// For an overlay in the guest.
	lack   *lack
	looks  looks
	ghosts []place

	newer, older *inode // in lru, if fd >= 0
}

// version tells contents of a file apart.
type version struct {
	sec, csec   int64
	nsec, cnsec uint32
	size        uint64
}

func (in *inode) dir() bool { return in.mode == unix.S_IFDIR }

// identify notes who the node is.
func (in *inode) identify(st *unix.Statx_t, rw bool) {
	in.key = keyOf(st, rw)
	in.mode = uint32(st.Mode) & unix.S_IFMT
	in.birth, in.born = st.Btime, st.Mask&unix.STATX_BTIME != 0 && !in.unborn
}

func keyOf(st *unix.Statx_t, rw bool) key {
	k := key{file: fileOf(st), rw: rw}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		k.mount = st.Mnt_id
	}
	return k
}

// is says whether st is of the very file that the node stands for.
func (in *inode) is(st *unix.Statx_t) bool {
	return in.key == keyOf(st, in.key.rw) && in.sameBirth(st)
}

// sameBirth says whether a file with this node's numbers is this node: numbers
// of deleted files are used again.
func (in *inode) sameBirth(st *unix.Statx_t) bool {
	return in.mode == uint32(st.Mode)&unix.S_IFMT &&
		(!in.born || st.Mask&unix.STATX_BTIME == 0 || in.birth.Sec == st.Btime.Sec && in.birth.Nsec == st.Btime.Nsec)
}

// node finds and pins the node that a request is about.
func (f *FS) node(id uint64) (*inode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, unix.ENOTCONN
	}
	in := f.nodes[id]
	if in == nil {
		return nil, unix.ESTALE
	}
	f.pin(in)
	return in, nil
}

// directory is node for a request that needs a directory.
func (f *FS) directory(id uint64) (*inode, error) {
	in, err := f.node(id)
	if err == nil && !in.dir() {
		f.unpin(in)
		return nil, unix.ENOTDIR
	}
	return in, err
}

// changeable is directory for a request that changes it.
func (f *FS) changeable(id uint64, name string) (*inode, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	in, err := f.directory(id)
	if err == nil && (!in.key.rw || in.hidden) {
		f.unpin(in)
		return nil, unix.EROFS
	}
	return in, err
}

// pin keeps a node, and its descriptor, until unpin. f.mu is held.
func (f *FS) pin(in *inode) {
	in.pins++
	f.pins++
}

func (f *FS) unpin(in *inode) {
	f.mu.Lock()
	f.unpinLocked(in)
	f.mu.Unlock()
}

func (f *FS) unpinLocked(in *inode) {
	in.pins--
	f.pins--
	if in.pins == 0 {
		f.drop(in)
	}
	if f.closed && f.pins == 0 {
		f.closeRoot()
	}
}

// drop removes a node that nobody needs from the tables, and those above it
// that were needed for it alone. f.mu is held.
func (f *FS) drop(in *inode) {
	for in != nil && in != f.root && in.pins == 0 {
		if in.gone {
			f.closeNode(in)
			return
		}
		if in.lookups != 0 || in.kids != 0 || in.open != nil || len(in.owners) != 0 {
			return
		}
		in.gone = true
		delete(f.nodes, in.id)
		if f.keys[in.key] == in {
			delete(f.keys, in.key)
		}
		f.closeNode(in)
		f.vanish(in)
		for _, p := range in.more {
			p.parent.kids--
			if p.parent != in.parent {
				f.drop(p.parent)
			}
		}
		parent := in.parent
		in.place, in.more = place{}, nil
		if parent != nil {
			parent.kids--
		}
		in = parent
	}
}

// closeNode closes the descriptor of a node that is gone, unless a request is
// at work with it: the last one does. f.mu is held.
func (f *FS) closeNode(in *inode) {
	if in.pins == 0 && in.fd >= 0 {
		f.lru.remove(in)
		_ = unix.Close(in.fd)
		in.fd = -1
	}
}

// remember gives the guest one more lookup of the file st, found in parent, and
// returns its node. crossed is set where a mount lies between the two.
func (f *FS) remember(parent *inode, name string, st *unix.Statx_t, c crossing) (*inode, error) {
	in, stale, err := f.meet(parent, name, st, c)
	f.tell(stale)
	return in, err
}

// meet is remember, and says whether the guest is to be told that it may know the
// name as something else.
func (f *FS) meet(parent *inode, name string, st *unix.Statx_t, c crossing) (_ *inode, stale bool, _ error) {
	r := parent.rule.kid(name)
	rw := parent.key.rw
	if r != nil {
		rw = r.writable
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	hidden := c.kernel || r != nil && r.hidden
	if _, ok := f.hidden[fileOf(st)]; ok {
		hidden = true
	}
	if hidden && !dir {
		return nil, false, unix.ENOENT
	}
	k := keyOf(st, rw)
	f.mu.Lock()
	defer f.mu.Unlock()
	if parent.gone || f.closed {
		return nil, false, unix.ESTALE
	}
	if k == f.root.key {
		return nil, false, unix.ELOOP
	}
	in := f.keys[k]
	if in != nil && (!in.sameBirth(st) || dir && (in.rule != r || in.hidden != hidden)) {
		// Its number has been given to another file, or the host has moved it.
		delete(f.keys, k)
		in = nil
	}
	if in == nil && f.names != nil {
		in = f.follow(place{parent, name}, st, k, c.unborn)
	}
	if in == nil {
		if len(f.nodes) >= f.limits.MaxInodes {
			f.complain("the guest holds as many inodes as it may", "inodes", len(f.nodes))
			return nil, false, unix.ENFILE
		}
		f.lastID++
		in = &inode{id: f.lastID, generation: f.session, fd: -1, unborn: c.unborn, hidden: hidden}
		if dir {
			in.rule = r
		}
		in.identify(st, rw)
		f.nodes[in.id] = in
		f.keys[k] = in
	}
	in.lookups++
	f.settle(in, parent, name, st.Nlink)
	stale = f.relooked(in, st)
	return in, f.outdated(place{parent, name}) || stale, nil
}

// nameless is remember for a file without a name.
func (f *FS) nameless(parent *inode, st *unix.Statx_t, unborn bool) (*inode, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if parent.gone || f.closed {
		return nil, unix.ESTALE
	}
	if len(f.nodes) >= f.limits.MaxInodes {
		return nil, unix.ENFILE
	}
	f.lastID++
	in := &inode{id: f.lastID, generation: f.session, fd: -1, lookups: 1, unborn: unborn}
	in.identify(st, parent.key.rw)
	f.nodes[in.id] = in
	f.keys[in.key] = in
	return in, nil
}

// settle notes that a node was seen under a name. f.mu is held.
func (f *FS) settle(in, parent *inode, name string, links uint32) {
	f.arrive(in, place{parent, name})
	if in.parent == parent && in.name == name {
		return
	}
	old := in.place
	in.place = place{parent, name}
	parent.kids++
	if in.dir() || links <= 1 {
		f.leave(in, old)
		for _, p := range in.more {
			f.leave(in, p)
		}
		in.more = nil
		if in.dir() {
			f.cutLoop(in)
		}
		return
	}
	if old.parent == nil {
		return
	}
	for i, p := range in.more {
		if p == in.place {
			in.more[i] = old
			parent.kids-- // it counted already
			return
		}
	}
	if len(in.more) == maxPlaces-1 {
		f.leave(in, in.more[0])
		in.more = append(in.more[:0], in.more[1:]...)
	}
	in.more = append(in.more, old)
}

// leave takes back that in was seen at p. f.mu is held.
func (f *FS) leave(in *inode, p place) {
	if p.parent != nil {
		if p != in.place {
			f.depart(in, p)
		}
		p.parent.kids--
		f.drop(p.parent)
	}
}

// unsettle takes a place away from a node that is not there. f.mu is held.
func (f *FS) unsettle(in *inode, p place) {
	if in.place == p {
		in.place = place{}
		if n := len(in.more); n > 0 {
			in.place, in.more = in.more[n-1], in.more[:n-1]
		}
		f.leave(in, p)
		return
	}
	for i, q := range in.more {
		if q == p {
			in.more = append(in.more[:i], in.more[i+1:]...)
			f.leave(in, p)
			return
		}
	}
}

// cutLoop repairs what the host's renames can do to the tables: a directory
// that was seen below one that is itself noted to be below it. The older note
// is wrong. f.mu is held.
func (f *FS) cutLoop(in *inode) {
	up := in.parent
	for range maxDepth {
		if up == nil || up == f.root {
			return
		}
		if up.parent == in {
			f.unsettle(up, up.place)
			return
		}
		up = up.parent
	}
}

// Forget implements [fuse.RawFileSystem].
func (f *FS) Forget(id, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := f.nodes[id]
	if in == nil || in == f.root {
		return
	}
	if n > in.lookups {
		f.complain("the guest forgets a node more often than it was told of it", "node", id, "forgets", n, "lookups", in.lookups)
		n = in.lookups
	}
	in.lookups -= n
	f.drop(in)
}

// unlookup takes back one lookup that the guest will not hear of.
func (f *FS) unlookup(in *inode) { f.Forget(in.id, 1) }

// lru lists the nodes with descriptors, the one used last first.
type lru struct {
	newest, oldest *inode
	n              int
}

func (l *lru) push(in *inode) {
	in.older, in.newer = l.newest, nil
	if l.newest != nil {
		l.newest.newer = in
	} else {
		l.oldest = in
	}
	l.newest = in
	l.n++
}

func (l *lru) remove(in *inode) {
	if in.newer != nil {
		in.newer.older = in.older
	} else {
		l.newest = in.older
	}
	if in.older != nil {
		in.older.newer = in.newer
	} else {
		l.oldest = in.newer
	}
	in.newer, in.older = nil, nil
	l.n--
}

func (l *lru) touch(in *inode) {
	if l.newest != in {
		l.remove(in)
		l.push(in)
	}
}

// evict takes descriptors away from the nodes used least, until at most keep
// are left or all are in use, and returns them to be closed. f.mu is held.
func (f *FS) evict(keep int) []int {
	var fds []int
	for in := f.lru.oldest; in != nil && f.lru.n > keep; {
		next := in.newer
		if in.pins == 0 {
			f.lru.remove(in)
			fds = append(fds, in.fd)
			in.fd = -1
		}
		in = next
	}
	return fds
}

var _ fuse.RawFileSystem = (*FS)(nil)
