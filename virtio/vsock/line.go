package vsock

// line is the connections that have something for the guest, in the order of
// their turns. It is used under the device's lock.
type line struct{ first, last *flow }

// link is a connection's place in line.
type link struct {
	prev, next *flow
	in         bool
}

func (l *line) add(f *flow, front bool) {
	k := &f.place
	*k = link{in: true}
	switch {
	case l.first == nil:
		l.first, l.last = f, f
	case front:
		k.next, l.first.place.prev = l.first, f
		l.first = f
	default:
		k.prev, l.last.place.next = l.last, f
		l.last = f
	}
}

func (l *line) remove(f *flow) {
	k := &f.place
	if k.prev != nil {
		k.prev.place.next = k.next
	} else {
		l.first = k.next
	}
	if k.next != nil {
		k.next.place.prev = k.prev
	} else {
		l.last = k.prev
	}
	*k = link{}
}

// enqueue puts f in line if it is not; front is for one whose turn was cut short.
func (d *Device) enqueue(f *flow, front bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !f.place.in {
		d.line.add(f, front)
		d.waiting.Add(1)
	}
}

// leaveLine takes f out of the line. It is called under d.mu.
func (d *Device) leaveLine(f *flow) {
	if f.place.in {
		d.line.remove(f)
		d.waiting.Add(-1)
	}
}

// reset is a RST that belongs to no connection, or not any more.
type reset struct {
	cid              uint64 // the source's: the one that the guest has called
	port, guestPort  uint32
	typ              uint16
	bufAlloc, fwdCnt uint32
}

// resetList is the resets that wait for buffers, of which there are at most most.
type resetList struct {
	list []reset
	at   int // the first
	most int
}

func (l *resetList) len() int { return len(l.list) - l.at }

// add reports whether there was room.
func (l *resetList) add(r reset) bool {
	if l.len() >= l.most {
		return false
	}
	if len(l.list) == cap(l.list) && l.at > len(l.list)/2 {
		l.list = l.list[:copy(l.list, l.list[l.at:])]
		l.at = 0
	}
	l.list = append(l.list, r)
	return true
}

// peek is the first.
func (l *resetList) peek() reset { return l.list[l.at] }

func (l *resetList) pop() {
	if l.at++; l.at == len(l.list) {
		l.list, l.at = l.list[:0], 0
	}
}

// clear empties the list and returns how long it was.
func (l *resetList) clear() int {
	n := l.len()
	l.list, l.at = nil, 0
	return n
}

// addReset has a reset sent.
func (d *Device) addReset(r reset) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.active {
		return
	}
	if !d.resets.add(r) {
		d.stats.resetsLost.Add(1)
		return
	}
	d.waiting.Add(1)
}
