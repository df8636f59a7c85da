package hostdir

import (
	"strings"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the directories between the root and a node whose path has to
// be walked.
const maxDepth = 4096

// crossing is what there is to know of a file besides its attributes.
type crossing struct {
	kernel bool // it is on a file system of the host's kernel
	unborn bool // birth times tell nothing there
}

// hold makes sure that a directory, pinned by the caller, has a descriptor, and
// returns it: it stays the node's, and open as long as the node is pinned.
func (f *FS) hold(in *inode) (int, error) { return f.holdAs(in, false) }

// holdAs is hold; still says that the caller has f.renames.
func (f *FS) holdAs(in *inode, still bool) (int, error) {
	f.mu.Lock()
	if in.fd >= 0 {
		fd := in.fd
		if in != f.root {
			f.lru.touch(in)
		}
		f.mu.Unlock()
		return fd, nil
	}
	if in == f.root { // closed
		f.mu.Unlock()
		return -1, unix.ENOTCONN
	}
	f.mu.Unlock()
	fd, err := f.walk(in)
	if err != nil && !still {
		// It may just have been moved. Names hold still now.
		f.renames.RLock()
		fd, err = f.walk(in)
		f.renames.RUnlock()
	}
	if err != nil {
		return -1, err
	}
	return f.keep(in, fd), nil
}

// keep gives a descriptor to a node, pinned by the caller, and returns the one that
// it has from then on.
func (f *FS) keep(in *inode, fd int) int {
	f.mu.Lock()
	if in.fd >= 0 { // another request was faster
		have := in.fd
		f.mu.Unlock()
		_ = unix.Close(fd)
		return have
	}
	in.fd = fd
	f.lru.push(in)
	old := f.evict(f.limits.MaxOpen)
	f.mu.Unlock()
	closeAll(old)
	return fd
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// shrink closes half of the descriptors that are only a cache, for a request
// that could get none.
func (f *FS) shrink() {
	f.mu.Lock()
	fds := f.evict(f.lru.n / 2)
	f.mu.Unlock()
	closeAll(fds)
}

// walk opens a directory by its path from the nearest one above it that has a
// descriptor, and makes sure that it is the one.
func (f *FS) walk(in *inode) (int, error) {
	var names []string // from in upwards
	f.mu.Lock()
	up := in
	for up.fd < 0 {
		if up.parent == nil || len(names) == maxDepth {
			f.mu.Unlock()
			return -1, unix.ESTALE
		}
		names = append(names, up.name)
		up = up.parent
	}
	f.pin(up)
	start := up.fd
	f.mu.Unlock()
	defer f.unpin(up)

	fd := start
	for len(names) > 0 {
		var path strings.Builder
		for len(names) > 0 {
			name := names[len(names)-1]
			if path.Len()+1+len(name) >= maxPath {
				break
			}
			if path.Len() > 0 {
				path.WriteByte('/')
			}
			path.WriteString(name)
			names = names[:len(names)-1]
		}
		next, err := f.openPath(fd, path.String(), unix.O_DIRECTORY)
		if fd != start {
			_ = unix.Close(fd)
		}
		if err != nil {
			return -1, stale(err)
		}
		fd = next
	}
	if fd == start { // another request was faster
		return unix.FcntlInt(uintptr(start), unix.F_DUPFD_CLOEXEC, 0)
	}
	var st unix.Statx_t
	err := statFD(fd, &st)
	if err == nil && !in.is(&st) {
		err = unix.ESTALE
	}
	if err == nil && !in.hidden && st.Mnt_id != up.key.mount {
		// What is mounted on the way may have changed.
		var kernel bool
		if kernel, _, err = f.kindOf(fd); kernel {
			err = unix.ESTALE
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openPath opens a path below a directory with O_PATH.
func (f *FS) openPath(dir int, path string, flags uint64) (int, error) {
	fd, err := openBeneath(dir, path, unix.O_PATH|flags, 0)
	if err == unix.EMFILE || err == unix.ENFILE {
		f.shrink()
		fd, err = openBeneath(dir, path, unix.O_PATH|flags, 0)
	}
	return fd, err
}

// stale says of an error of a walk that the tree is not as it was.
func stale(err error) error {
	switch err {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ENAMETOOLONG, unix.EAGAIN:
		return unix.ESTALE
	}
	return err
}

// grip is a hold on the very file of a node for the time of a request.
type grip struct {
	fd   int
	st   unix.Statx_t // if own
	open *handle      // fd is its
	own  bool         // fd is closed with the grip
}

// grip gets a descriptor of a node, pinned by the caller: O_PATH, or one of its
// handles'.
func (f *FS) grip(in *inode) (grip, error) {
	if in.dir() {
		fd, err := f.hold(in)
		return grip{fd: fd}, err
	}
	g, err := f.tryGrip(in, false)
	if err != nil {
		f.renames.RLock()
		defer f.renames.RUnlock()
		g, err = f.tryGrip(in, true)
	}
	return g, err
}

func (f *FS) tryGrip(in *inode, still bool) (grip, error) {
	f.mu.Lock()
	if h := in.open; h != nil {
		h.refs.Add(1)
		f.mu.Unlock()
		return grip{fd: h.fd, open: h}, nil
	}
	if fd := in.fd; fd >= 0 {
		f.lru.touch(in)
		f.mu.Unlock()
		return grip{fd: fd}, nil
	}
	f.mu.Unlock()
	g := grip{fd: -1}
	err := f.eachPlace(in, still, func(dir int, name string) error {
		fd, err := f.openPath(dir, name, 0)
		if err != nil {
			return err
		}
		if err = statFD(fd, &g.st); err == nil && !in.is(&g.st) {
			err = unix.ESTALE
		}
		if err != nil {
			_ = unix.Close(fd)
			return err
		}
		g.fd, g.own = fd, true
		return nil
	})
	return g, err
}

func (f *FS) ungrip(g grip) {
	if g.own {
		_ = unix.Close(g.fd)
	}
	if g.open != nil {
		f.unref(g.open)
	}
}

// eachPlace calls try with the places where a node was seen until it succeeds.
// Places where it is not are forgotten.
func (f *FS) eachPlace(in *inode, still bool, try func(dir int, name string) error) error {
	for range maxPlaces {
		f.mu.Lock()
		p := in.place
		if p.parent == nil {
			f.mu.Unlock()
			return unix.ESTALE
		}
		f.pin(p.parent)
		f.mu.Unlock()
		dir, err := f.holdAs(p.parent, still)
		if err == nil {
			err = stale(try(dir, p.name))
		}
		f.mu.Lock()
		if err == unix.ESTALE && len(in.more) > 0 {
			f.unsettle(in, p)
			f.unpinLocked(p.parent)
			f.mu.Unlock()
			continue
		}
		f.unpinLocked(p.parent)
		f.mu.Unlock()
		return err
	}
	return unix.ESTALE
}

// stat looks at a node, pinned by the caller.
func (f *FS) stat(in *inode, st *unix.Statx_t) error {
	err := f.tryStat(in, st, false)
	if err != nil {
		f.renames.RLock()
		defer f.renames.RUnlock()
		err = f.tryStat(in, st, true)
	}
	return err
}

func (f *FS) tryStat(in *inode, st *unix.Statx_t, still bool) error {
	if in.dir() {
		fd, err := f.holdAs(in, still)
		if err != nil {
			return err
		}
		return statFD(fd, st)
	}
	f.mu.Lock()
	if h := in.open; h != nil {
		h.refs.Add(1)
		f.mu.Unlock()
		defer f.unref(h)
		return statFD(h.fd, st)
	}
	if fd := in.fd; fd >= 0 {
		f.lru.touch(in)
		f.mu.Unlock()
		return statFD(fd, st)
	}
	f.mu.Unlock()
	return f.eachPlace(in, still, func(dir int, name string) error {
		err := statAt(dir, name, st)
		if err == nil && !in.is(st) {
			err = unix.ESTALE
		}
		return err
	})
}
