package net

import (
	"errors"
	"time"
)

// watchInterval is how often an interface that is gone is looked for.
const watchInterval = time.Second

// gone takes note that the interface of a port was deleted.
func (t *Tap) gone(port *tapPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.pairs {
		if t.pairs[i].port.Load() == port {
			t.lost()
			return
		}
	}
}

// lost closes the queues of an interface that was deleted and has it looked for. It
// is called under mu.
func (t *Tap) lost() {
	if t.closed || t.down {
		return
	}
	t.down = true
	_ = t.drop()
	if !t.watching {
		t.watching = true
		t.watcher.Go(t.watch)
	}
}

// watch says that the link is down, looks for the interface until it is back, and
// says so; and all that again if it was lost meanwhile. Only this goroutine speaks of
// the link, so that the last word is the right one, and it does so without mu:
// whoever listens may be starting this very backend.
func (t *Tap) watch() {
	if err := t.where.enter(); err != nil {
		t.tell(false)
		return // the link stays down: no interface can be found from here
	}
	for {
		t.tell(false)
		for !t.back() {
			select {
			case <-time.After(watchInterval):
			case <-t.ended:
				return
			}
		}
		t.tell(true)
		t.mu.Lock()
		if !t.down {
			t.watching = false
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
	}
}

func (t *Tap) tell(up bool) {
	t.mu.Lock()
	f := t.notify
	t.mu.Unlock()
	if f != nil {
		f(up)
	}
}

// back attaches to the interface again if it is there and can be used.
func (t *Tap) back() bool {
	index, err := t.where.index(t.name)
	if err != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	ports, err := t.ports(index)
	if err != nil {
		return false
	}
	if err := t.begin(ports); err != nil {
		for _, p := range ports {
			err = errors.Join(err, p.f.Close())
		}
		return false
	}
	for i, p := range ports {
		t.pairs[i].port.Store(p)
	}
	t.counted = traffic{}
	t.down = false
	return true
}
