package hostdir

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What is noted here is for a guest that lays an overlay over the share
// ([Options.Changed]). An overlay keeps the directory entries of its layers: one
// that turns out to be another file makes every access fail with ESTALE, and that
// there is no such name is never looked at again.
const (
	// lookEvery is how often directories are looked at for names that the guest
	// looked up in vain, and lookMost how many of them each time.
	lookEvery = time.Second
	lookMost  = 512
	// maxLacking bounds the names noted; with more of them any change of the
	// directory counts.
	maxLacking = 1 << 16
	// maxGhosts bounds the ghosts of a name, and those of a node.
	maxGhosts = 8
	// tellFirst and tellSecond are when the guest is told.
	tellFirst, tellSecond = 20 * time.Millisecond, 200 * time.Millisecond
	// tellSoon and tellLate bound the time after which the guest is told again of
	// a name that it still has wrong: it may be in use there.
	tellSoon, tellLate = time.Second, 16 * time.Second
	// tellOther is how often it is told of a file that has another name.
	tellOther = 3
)

// changes is what is known of the guest's names; guarded by FS.mu.
type changes struct {
	// names are the nodes last seen at each place, ghosts those which were there
	// before and which the guest has not forgotten.
	names  map[place]*inode
	ghosts map[place][]*ghost

	// lacking are the directories in which the guest has looked up names in vain.
	lacking []*inode
	next    int // of lacking to be looked at
	absent  int // names of all of them
	timer   *time.Timer

	tells  int // times that the guest is still to be told
	teller *time.Timer
}

// lack is what the guest did not find in a directory.
type lack struct {
	at    int // in changes.lacking
	names map[string]struct{}
	any   bool    // there were more names
	since version // of the directory when the names were not there, zero if unknown
}

// looks is what was said of a file that an overlay copies into an inode of its own.
type looks struct {
	mode     uint16
	uid, gid uint32
}

func (f *FS) forgetChanges() {
	if f.opts.Changed == nil {
		return
	}
	f.changes = changes{names: map[place]*inode{}, ghosts: map[place][]*ghost{}, timer: f.timer, teller: f.teller}
}

// ghost is a node that the guest may still know by a name which leads elsewhere.
type ghost struct {
	in   *inode
	told int       // how often the guest was told
	last time.Time // when
}

// arrive notes that a node was seen at a place. f.mu is held.
func (f *FS) arrive(in *inode, p place) {
	if f.names == nil || p.parent.key.rw {
		return
	}
	if f.names[p] != in {
		f.supersede(p)
		f.names[p] = in
	}
	f.unbury(in, p)
}

// supersede notes that what was at a place is there no more. f.mu is held.
func (f *FS) supersede(p place) {
	if in := f.names[p]; in != nil {
		f.depart(in, p)
	}
}

// depart notes that a node has a place no more. f.mu is held.
func (f *FS) depart(in *inode, p place) {
	if f.names[p] != in {
		return
	}
	delete(f.names, p)
	if in.lookups == 0 {
		return
	}
	if len(in.ghosts) == maxGhosts {
		f.unbury(in, in.ghosts[0])
	}
	if here := f.ghosts[p]; len(here) == maxGhosts {
		f.unbury(here[0].in, p)
	}
	f.ghosts[p] = append(f.ghosts[p], &ghost{in: in})
	in.ghosts = append(in.ghosts, p)
}

// vanish forgets a node's names. f.mu is held.
func (f *FS) vanish(in *inode) {
	if f.names == nil {
		return
	}
	for _, p := range append(in.more[:len(in.more):len(in.more)], in.place) {
		if f.names[p] == in {
			delete(f.names, p)
		}
	}
	for len(in.ghosts) > 0 {
		f.unbury(in, in.ghosts[0])
	}
	f.unlack(in)
}

func (f *FS) unbury(in *inode, p place) {
	i := slices.Index(in.ghosts, p)
	if i < 0 {
		return
	}
	in.ghosts = slices.Delete(in.ghosts, i, i+1)
	here := slices.DeleteFunc(f.ghosts[p], func(g *ghost) bool { return g.in == in })
	if len(here) == 0 {
		delete(f.ghosts, p)
	} else {
		f.ghosts[p] = here
	}
}

// outdated says whether the guest is to be told that a name leads elsewhere now.
// f.mu is held.
func (f *FS) outdated(p place) bool {
	tell := false
	for _, g := range slices.Clone(f.ghosts[p]) {
		if g.in.lookups == 0 || !g.due() {
			continue
		}
		tell = true
		// The guest may well know it by its other name only.
		if g.told >= tellOther && g.in.open == nil && g.in.parent != nil && g.in.place != p {
			f.unbury(g.in, p)
		}
	}
	return tell
}

// due says whether it is time to tell the guest.
func (g *ghost) due() bool {
	now := time.Now()
	if g.told > 0 && now.Sub(g.last) < min(tellSoon<<(g.told-1), tellLate) {
		return false
	}
	g.told = min(g.told+1, 8)
	g.last = now
	return true
}

// tell tells the guest, if it is to be told: soon, and once more. Until it has the
// answer to its request it has the name in use, and can't drop it. f.mu is not held.
func (f *FS) tell(stale bool) {
	if !stale {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	switch {
	case f.tells > 0:
	case f.teller == nil:
		f.teller = time.AfterFunc(tellFirst, f.told)
	default:
		f.teller.Reset(tellFirst)
	}
	f.tells = 2
}

func (f *FS) told() {
	f.mu.Lock()
	due := f.tells > 0 && !f.closed
	if due {
		if f.tells--; f.tells > 0 {
			f.teller.Reset(tellSecond)
		}
	}
	f.mu.Unlock()
	if due {
		f.opts.Changed()
	}
}

// follow finds the node at a place that a file of the host, seen there for the
// first time, replaces: a regular file that nobody has open or is at work with is
// just a name to the guest, and it goes on under it with the new content. f.mu is
// held.
func (f *FS) follow(p place, st *unix.Statx_t, k key, unborn bool) *inode {
	in := f.names[p]
	if in == nil || in.mode != unix.S_IFREG || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 ||
		in.key.rw || k.rw || in.place != p || len(in.more) > 0 ||
		in.open != nil || in.fd >= 0 || in.pins > 0 || len(in.owners) > 0 || in.unborn != unborn {
		return nil
	}
	if f.keys[in.key] == in {
		delete(f.keys, in.key)
	}
	in.identify(st, k.rw)
	in.seen = version{}
	f.keys[k] = in
	return in
}

// relooked notes what the guest is shown of a node, and says whether that is news
// to an overlay. f.mu is held.
func (f *FS) relooked(in *inode, st *unix.Statx_t) bool {
	if f.names == nil {
		return false
	}
	now := looks{st.Mode, st.Uid, st.Gid}
	news := in.lookups > 1 && in.looks != now && !in.key.rw
	in.looks = now
	return news
}

// lacks notes that a directory, pinned by the caller, has no such name, and says
// whether the guest is to be told that it had.
func (f *FS) lacks(dir *inode, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil || dir.key.rw || dir.gone || f.closed {
		return false
	}
	p := place{dir, name}
	f.supersede(p)
	if dir.lack == nil {
		dir.lack = &lack{at: len(f.lacking), names: map[string]struct{}{}}
		f.lacking = append(f.lacking, dir)
		switch {
		case len(f.lacking) > 1:
		case f.timer == nil:
			f.timer = time.AfterFunc(lookEvery, f.look)
		default:
			f.timer.Reset(lookEvery)
		}
	}
	if _, ok := dir.lack.names[name]; ok || f.absent < maxLacking {
		if !ok {
			f.absent++
		}
		dir.lack.names[name] = struct{}{}
	} else {
		dir.lack.any = true
	}
	return f.outdated(p)
}

// unlack forgets what a directory lacks. f.mu is held.
func (f *FS) unlack(dir *inode) {
	l := dir.lack
	if l == nil {
		return
	}
	f.absent -= len(l.names)
	last := len(f.lacking) - 1
	f.lacking[l.at] = f.lacking[last]
	f.lacking[l.at].lack.at = l.at
	f.lacking[last] = nil
	f.lacking = f.lacking[:last]
	dir.lack = nil // it may have been the last itself
}

// look tells the guest if a name is there that it looked up in vain.
func (f *FS) look() {
	f.mu.Lock()
	var dirs []*inode
	if !f.closed {
		for range min(lookMost, len(f.lacking)) {
			f.next = (f.next + 1) % len(f.lacking)
			in := f.lacking[f.next]
			f.pin(in)
			dirs = append(dirs, in)
		}
	}
	f.mu.Unlock()
	stale := false
	for _, dir := range dirs {
		stale = f.appeared(dir) || stale
		f.unpin(dir)
	}
	f.tell(stale)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed && len(f.lacking) > 0 {
		f.timer.Reset(lookEvery)
	}
}

// appeared says whether a directory, pinned by the caller, has what it lacked.
func (f *FS) appeared(dir *inode) bool {
	var st unix.Statx_t
	if err := f.stat(dir, &st); err != nil {
		return false // it is what it is to the guest by another name
	}
	now := settled(&st)
	f.mu.Lock()
	l := dir.lack
	if l == nil || dir.gone || l.since == now && now != (version{}) {
		f.mu.Unlock()
		return false
	}
	l.since = now
	names := make([]string, 0, len(l.names))
	for name := range l.names {
		names = append(names, name)
	}
	found := l.any
	l.any = false
	f.mu.Unlock()
	fd, err := f.hold(dir)
	if err != nil {
		return found
	}
	for _, name := range names {
		if err := statAt(fd, name, &st); err != nil {
			continue
		}
		found = true
		f.mu.Lock()
		if l := dir.lack; l != nil && !dir.gone {
			if _, ok := l.names[name]; ok {
				delete(l.names, name)
				f.absent--
			}
		}
		f.mu.Unlock()
	}
	return found
}
