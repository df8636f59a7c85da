package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Tap whose frames the host's kernel moves is in no poller: each frame would wake
// that for nothing. Nobody reads from it, so nobody learns like that of its end. The
// kernel tells of interfaces that go to those who ask it to.

// tapEvents is a netlink socket that tells of changes of the interfaces of a network
// namespace, and another that is asked for their numbers.
type tapEvents struct {
	news *os.File
	ask  int
}

// newTapEvents is of the namespace of the calling thread.
func newTapEvents() (e *tapEvents, err error) {
	news, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("a socket for what happens to interfaces: %w", err)
	}
	ask, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		if err = unix.Bind(news, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err == nil {
			return &tapEvents{news: os.NewFile(uintptr(news), "netlink"), ask: ask}, nil
		}
		_ = unix.Close(ask)
	}
	_ = unix.Close(news)
	return nil, fmt.Errorf("a socket for what happens to interfaces: %w", err)
}

func (e *tapEvents) close() error { return errors.Join(e.news.Close(), unix.Close(e.ask)) }

// netlinkSize is as long as a message about an interface may be.
const netlinkSize = 32 << 10

// listen calls f when something has happened to an interface, whichever, with the
// kernel's messages, until close.
func (e *tapEvents) listen(f func(messages []byte)) {
	b := make([]byte, netlinkSize)
	for {
		n, err := e.news.Read(b)
		// Who is too slow is told that he was (ENOBUFS).
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return
		}
		f(b[:max(n, 0)])
	}
}

// with calls f with the file of a pair's queue, which stays open meanwhile.
func (t *Tap) with(pair int, f func(fd int) error) error {
	port := t.pairs[pair].port.Load()
	if port == nil {
		return ErrTapGone
	}
	return port.control(f)
}

// alive reports whether the interface is there, and takes note if it is not.
func (t *Tap) alive() bool {
	port := t.pairs[0].port.Load()
	if port == nil {
		return false
	}
	err := port.control(func(fd int) error {
		r, err := unix.NewIfreq("")
		if err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.TUNGETIFF, r)
	})
	if errors.Is(err, unix.EBADFD) {
		t.gone(port)
		return false
	}
	return err == nil || t.pairs[0].port.Load() == port // else it was closed meanwhile
}

// traffic is what has passed an interface, as the guest sees it: in is what it
// received.
type traffic struct {
	framesIn, bytesIn, framesOut, bytesOut uint64
	droppedIn, droppedOut                  uint64
}

func (t traffic) minus(o traffic) traffic {
	return traffic{
		t.framesIn - o.framesIn, t.bytesIn - o.bytesIn, t.framesOut - o.framesOut, t.bytesOut - o.bytesOut,
		t.droppedIn - o.droppedIn, t.droppedOut - o.droppedOut,
	}
}

func (t traffic) plus(o traffic) traffic {
	return traffic{
		t.framesIn + o.framesIn, t.bytesIn + o.bytesIn, t.framesOut + o.framesOut, t.bytesOut + o.bytesOut,
		t.droppedIn + o.droppedIn, t.droppedOut + o.droppedOut,
	}
}

// heard looks after the interface when something has happened to one. The last word
// about one that goes is what has passed it.
func (t *Tap) heard(messages []byte) {
	t.mu.Lock()
	if now, err := parseTraffic(messages, t.index); err == nil {
		t.add(now)
	}
	t.mu.Unlock()
	t.alive()
}

// traffic is what has passed the interface since it was opened, and those of its name
// before it.
func (t *Tap) traffic() traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count()
	return t.passed
}

// count adds to passed what has passed since it was last called. It is called under
// mu.
func (t *Tap) count() {
	if t.events == nil || t.closed || t.down {
		return
	}
	if now, err := t.events.traffic(t.index); err == nil {
		t.add(now)
	}
}

// add brings passed up to date. It is called under mu.
func (t *Tap) add(now traffic) {
	t.passed = t.passed.plus(now.minus(t.counted))
	t.counted = now
}

// traffic asks for the numbers of an interface.
func (e *tapEvents) traffic(index uint32) (traffic, error) {
	request := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], unix.RTM_GETLINK)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(request[unix.SizeofNlMsghdr+4:], index)
	if err := unix.Sendto(e.ask, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return traffic{}, err
	}
	answer := make([]byte, netlinkSize)
	n, _, err := unix.Recvfrom(e.ask, answer, 0)
	if err != nil {
		return traffic{}, err
	}
	return parseTraffic(answer[:n], index)
}

// parseTraffic looks for the numbers of an interface in the kernel's messages.
func parseTraffic(messages []byte, index uint32) (traffic, error) {
	msgs, err := syscall.ParseNetlinkMessage(messages)
	if err != nil {
		return traffic{}, err
	}
	for i := range msgs {
		m := &msgs[i]
		if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK ||
			len(m.Data) < unix.SizeofIfInfomsg || binary.NativeEndian.Uint32(m.Data[4:]) != index {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(m)
		if err != nil {
			return traffic{}, err
		}
		for _, a := range attrs {
			if a.Attr.Type != unix.IFLA_STATS64 || len(a.Value) < 8*8 {
				continue
			}
			// struct rtnl_link_stats64. What the guest sends the interface receives.
			field := func(i int) uint64 { return binary.NativeEndian.Uint64(a.Value[8*i:]) }
			return traffic{
				framesOut: field(0), framesIn: field(1), bytesOut: field(2), bytesIn: field(3),
				droppedOut: field(6), droppedIn: field(7),
			}, nil
		}
	}
	return traffic{}, unix.ENODATA
}
