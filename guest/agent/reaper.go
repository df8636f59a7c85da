package agent

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// end is how a process ended.
type end struct {
	status unix.WaitStatus
	usage  unix.Rusage
	at     time.Time
}

// child is a process that a command has started.
type child struct {
	pid   int
	ended chan end // has its end, once
}

// reaper waits for all children of this process.
type reaper struct {
	wake  chan struct{} // there may be a child
	ended chan struct{} // a child has ended, since somebody looked

	mu       sync.Mutex
	known    map[int]*child
	starting int         // processes that may exist and are not known yet
	early    map[int]end // of unknown children, while some are starting
}

func newReaper() *reaper {
	return &reaper{wake: make(chan struct{}, 1), ended: make(chan struct{}, 1), known: make(map[int]*child), early: make(map[int]end)}
}

// run waits for children for ever.
func (r *reaper) run() {
	for {
		// The process is collected with the lock held, so that a signal to a known
		// child never reaches another process that has its number by then.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		switch err {
		case nil:
			r.collect()
		case unix.ECHILD:
			<-r.wake
		}
	}
}

func (r *reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e end
	pid, err := unix.Wait4(-1, &e.status, unix.WNOHANG, &e.usage)
	if err != nil || pid <= 0 {
		return
	}
	e.at = time.Now()
	notify(r.ended)
	if c := r.known[pid]; c != nil {
		delete(r.known, pid)
		c.ended <- e
	} else if r.starting > 0 {
		r.early[pid] = e
	}
}

// start calls fork, which makes a process, and returns that.
func (r *reaper) start(fork func() (pid int, err error)) (*child, error) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := fork()
	notify(r.wake)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	var c *child
	if err == nil {
		c = &child{pid: pid, ended: make(chan end, 1)}
		if e, ok := r.early[pid]; ok {
			c.ended <- e
		} else {
			r.known[pid] = c
		}
	}
	if r.starting == 0 {
		clear(r.early)
	}
	return c, err
}

// signal sends a signal to the process group that c leads or, if group is not 0, to
// that one. To kill is to kill both: the shell that c may be would go on without its job.
// Once c has ended it does nothing.
func (r *reaper) signal(c *child, group int, s unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[c.pid] != c {
		return nil
	}
	own := group == 0 || group == c.pid
	if own || s == unix.SIGKILL {
		// First, or it would hear of its job's end. While the lock is held nobody who was
		// left to this process has his number taken by another.
		if err := unix.Kill(-c.pid, s); own {
			return err
		}
	}
	return unix.Kill(-group, s)
}

// wait waits until no child of a command is left, but not longer than bound.
func (r *reaper) wait(bound time.Duration) {
	timeout := time.NewTimer(bound)
	defer timeout.Stop()
	for {
		r.mu.Lock()
		left := len(r.known) + r.starting
		r.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-r.ended:
		case <-timeout.C:
			return
		}
	}
}

// notify leaves a word for whoever looks at c.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
