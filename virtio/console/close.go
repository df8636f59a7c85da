package console

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Close ends the device's goroutines, closes the ports' Closers, and returns when
// the goroutines have ended. What was still to be written is written first if Out
// takes it within a quarter of a second; bytes left over are ErrUnflushed. The device
// is not in use any more.
//
// A goroutine inside a Read or Write that does not return is freed by the port's
// Closer or, where the stream has it, by SetReadDeadline or SetWriteDeadline (which is
// taken back afterwards). Where neither is there, or works within a quarter of a second,
// Close leaves the goroutine behind; it ends as soon as the call returns, and does no
// more than that.
func (d *Device) Close() error {
	d.mu.Lock()
	first := !d.begun
	d.begun = true
	d.mu.Unlock()
	if !first {
		<-d.closed
		return d.closeErr
	}
	close(d.closing)
	errs := make([]error, len(d.order))
	var all sync.WaitGroup
	for i, p := range d.order {
		all.Go(func() {
			if err := p.shut(); err != nil {
				errs[i] = fmt.Errorf("console: %s: %w", p.what, err)
			}
		})
	}
	all.Wait()
	d.closeErr = errors.Join(errs...)
	close(d.closed)
	return d.closeErr
}

// shut ends a port's goroutines.
func (p *port) shut() error {
	var once sync.Once
	var closeErr error
	free := func() { once.Do(func() { closeErr = p.conf.close() }) }
	unflushed := p.out.stop(func() {
		free()
		if w, ok := p.conf.Out.(interface{ SetWriteDeadline(time.Time) error }); ok {
			interrupt(w.SetWriteDeadline, p.out.done)
		}
	})
	p.in.stop(func() {
		free()
		if r, ok := p.conf.In.(interface{ SetReadDeadline(time.Time) error }); ok {
			interrupt(r.SetReadDeadline, p.in.done)
		}
	})
	free()
	return errors.Join(unflushed, closeErr)
}

// within waits for done for at most d and reports whether it came.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// interrupt makes set, a SetReadDeadline or SetWriteDeadline, free the goroutine that
// closes done.
func interrupt(set func(time.Time) error, done <-chan struct{}) {
	if set(time.Unix(1, 0)) == nil && within(done, closeGrace) {
		_ = set(time.Time{})
	}
}
