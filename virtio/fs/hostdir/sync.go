package hostdir

import (
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// syncs brings what the guest has changed to the host's disks, by syncfs(2) of each mount
// in which it has changed something. It does so in rounds, one at a time: who asks during
// a round waits for the next one, which all of those share.
type syncs struct {
	// These are the system calls, but in tests. all is sync(2).
	syncfs func(fd int) error
	all    func()

	last atomic.Uint64 // one more than the mount that was marked last; 0 is none

	mu        sync.Mutex
	dirty     map[uint64]struct{} // mounts changed since the last round began
	now, next *syncRound
}

type syncRound struct {
	done chan struct{}
	err  error // valid once done is closed
}

func newSyncs() *syncs {
	return &syncs{syncfs: unix.Syncfs, all: unix.Sync, dirty: map[uint64]struct{}{}}
}

// SyncFS brings all that was changed through the share to the host's disks, as far as its
// file systems do that. If nothing was changed since the last time, and so in a share
// that is read-only, that is nothing. It ends before with EINTR if cancel is closed or
// Interrupt is called; what the host has begun then goes on, and neither Reset nor Close
// waits for it.
func (f *FS) SyncFS(cancel <-chan struct{}) fuse.Status {
	r := f.syncs.join(f.syncMounts)
	if r == nil {
		return fuse.OK
	}
	f.mu.Lock()
	interrupted := f.interrupted
	f.mu.Unlock()
	select {
	case <-r.done:
		return status(r.err)
	case <-cancel:
	case <-interrupted:
	}
	return fuse.EINTR
}

// join returns the round that makes stable what is written now, nil if that is so. do
// carries a round out.
func (s *syncs) join(do func(mounts map[uint64]struct{}) error) *syncRound {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.next != nil:
		return s.next
	case s.now != nil:
		s.next = &syncRound{done: make(chan struct{})}
		return s.next
	case len(s.dirty) == 0:
		return nil
	}
	s.now = &syncRound{done: make(chan struct{})}
	go s.run(s.now, do)
	return s.now
}

// run carries a round out, and those that are asked for meanwhile.
func (s *syncs) run(r *syncRound, do func(mounts map[uint64]struct{}) error) {
	for r != nil {
		s.mu.Lock()
		mounts := s.dirty
		s.dirty = map[uint64]struct{}{}
		s.last.Store(0) // before the round: what is written from here on marks it again
		s.mu.Unlock()
		r.err = do(mounts)
		s.mu.Lock()
		if r.err != nil {
			maps.Copy(s.dirty, mounts)
		}
		s.now, s.next = s.next, nil
		next := s.now
		s.mu.Unlock()
		close(r.done)
		r = next
	}
}

// wrote says that something was changed in a mount. It is called after the change, which
// a round that has begun before may have missed, and before the guest hears of it.
func (f *FS) wrote(mount uint64) {
	s := f.syncs
	if s.last.Load() == mount+1 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[mount] = struct{}{}
	s.last.Store(mount + 1)
}

// wroteTo is wrote for what a descriptor refers to.
func (f *FS) wroteTo(fd int) {
	var st unix.Statx_t
	_ = statFD(fd, &st) // without an answer it is no mount's number
	f.wrote(st.Mnt_id)
}

// syncMounts makes stable what is in mounts. One that can't be opened, since its root can't
// be read, something else is mounted over it, or the host numbers none (before Linux 5.8),
// takes a sync(2) of all there is.
func (f *FS) syncMounts(mounts map[uint64]struct{}) error {
	if len(mounts) == 0 {
		return nil
	}
	fds, err := f.openMounts(mounts)
	if err != nil {
		return err
	}
	for _, fd := range fds {
		if serr := again(func() error { return f.syncs.syncfs(fd) }); err == nil {
			err = serr
		}
		_ = unix.Close(fd)
	}
	if len(fds) < len(mounts) {
		f.syncs.all()
	}
	return err
}

// openMounts opens something in each mount, if that is possible.
func (f *FS) openMounts(mounts map[uint64]struct{}) ([]int, error) {
	root, err := f.node(fuse.FUSE_ROOT_ID)
	if err != nil {
		return nil, err
	}
	defer f.unpin(root)
	var fds []int
	var points map[uint64]string
	for mount := range mounts {
		path := "."
		if mount != root.key.mount {
			if points == nil {
				text, _ := os.ReadFile("/proc/self/mountinfo") // without it none is found
				points = mountPoints(string(text), f.dir)
			}
			path = points[mount]
		}
		if fd, err := f.openMount(root.fd, path, mount); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

func (f *FS) openMount(root int, path string, mount uint64) (int, error) {
	fd, err := f.openPath(root, path, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return -1, err
	}
	kind := st.Mode & unix.S_IFMT
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id != mount || kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return -1, unix.ESTALE
	}
	return f.reopen(fd, unix.O_RDONLY)
}

// mountPoints has the places of the mounts below dir, relative to it, by the mounts'
// numbers. text is as in proc_pid_mountinfo(5).
func mountPoints(text, dir string) map[uint64]string {
	points := map[uint64]string{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		path, below := strings.CutPrefix(unescape(fields[4]), strings.TrimSuffix(dir, "/")+"/")
		if err == nil && below && path != "" {
			points[id] = path
		}
	}
	return points
}

// unescape puts the bytes back that the kernel writes as a backslash and three octal
// digits.
func unescape(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, `\`)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		n, err := strconv.ParseUint(after[:min(3, len(after))], 8, 8)
		if err != nil || len(after) < 3 {
			b.WriteByte('\\')
			s = after
			continue
		}
		b.WriteByte(byte(n))
		s = after[3:]
	}
}
