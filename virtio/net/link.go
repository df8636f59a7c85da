package net

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// link is whether frames can come and go. It is up while both the device's owner
// and the backend say so.
type link struct {
	up atomic.Bool // of both

	mu       sync.Mutex
	owner    bool
	backend  bool
	announce bool          // the driver was asked to announce itself
	back     chan struct{} // closed while the backend is up
}

func (l *link) init() {
	l.owner, l.backend = true, true
	l.up.Store(true)
	l.back = make(chan struct{})
	close(l.back)
}

// status is the field of the configuration space.
func (l *link) status() uint16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.statusLocked()
}

func (l *link) statusLocked() uint16 {
	var s uint16
	if l.owner && l.backend {
		s = StatusLinkUp
	}
	if l.announce {
		s |= StatusAnnounce
	}
	return s
}

// acknowledge takes back the wish for an announcement.
func (l *link) acknowledge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.announce = false
}

// waitBack returns a channel that is closed when the backend is up.
func (l *link) waitBack() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.back
}

// set notes what the owner, or the backend, says, and reports whether the link has
// changed by it.
func (l *link) set(side *bool, up, announce bool) (changed bool) {
	was := l.owner && l.backend
	if side == &l.backend && *side != up {
		if up {
			close(l.back)
		} else {
			l.back = make(chan struct{})
		}
	}
	*side = up
	now := l.owner && l.backend
	if now == was {
		return false
	}
	l.up.Store(now)
	// Who comes back may do so at another place of the network.
	l.announce = now && announce
	return true
}

// SetLink plugs the cable in or pulls it out: the driver sees the link go up or
// down, and while it is down nothing is received or sent. A frame that comes then is
// dropped, as on a wire that leads nowhere; with a [VHost] it waits, in the interface's
// queue or the driver's. The link is up at first; a reset leaves it as it is.
func (d *Device) SetLink(up bool) {
	d.setLink(&d.link.owner, up)
}

// backendLink is told by the backend of its link.
func (d *Device) backendLink(up bool) {
	d.setLink(&d.link.backend, up)
}

func (d *Device) setLink(side *bool, up bool) {
	d.mu.Lock()
	d.link.mu.Lock()
	changed := d.link.set(side, up, d.running&FeatureGuestAnnounce != 0)
	status := d.link.statusLocked()
	d.link.mu.Unlock()
	if !changed {
		d.mu.Unlock()
		return
	}
	if d.carrier != nil {
		d.carrier.setLink(d.link.up.Load())
	}
	d.Update(func(b []byte) { putStatus(b, status) })
	tell := d.changed
	d.untold = tell == nil
	d.mu.Unlock()
	if tell != nil {
		tell()
	}
	if held, ok := d.muffled.Pass(d.clock.Now()); ok {
		d.log.Info("net: the link has changed", "device", d.opts.Name, "up", up, "unreported", held)
	}
}

func putStatus(b []byte, status uint16) {
	binary.LittleEndian.PutUint16(b[configStatus:], status)
}
