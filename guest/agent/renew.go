package agent

import (
	"sync"

	"golang.org/x/sys/unix"
)

// renewal drops the directory entries of the root, which is an overlay: it never asks
// again for a name that was missing, and calls one stale for good that has become
// another file below it.
type renewal struct {
	mu          sync.Mutex
	busy, again bool
}

// ask has the root's entries dropped, soon.
func (r *renewal) ask() { r.askFor("/") }

func (r *renewal) askFor(dir string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy {
		r.again = true
		return
	}
	r.busy = true
	go r.run(dir)
}

func (r *renewal) run(dir string) {
	for {
		dropEntries(dir)
		r.mu.Lock()
		r.busy, r.again = r.again, false
		busy := r.busy
		r.mu.Unlock()
		if !busy {
			return
		}
	}
}

// dropEntries drops the directory entries of the file system at dir that are not in
// use. To reconfigure it does that, though nothing is changed: the kernel's
// reconfigure_super calls shrink_dcache_sb. What it has of the files stays.
func dropEntries(dir string) {
	fd, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC)
	if err == nil {
		err = unix.FsconfigReconfigure(fd)
		_ = unix.Close(fd)
	}
	if err != nil { // before Linux 5.2
		_ = writeFile("/proc/sys/vm/drop_caches", "2")
	}
}
