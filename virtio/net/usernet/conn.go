package usernet

import (
	"net"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// guestConn is a connection of a Go program with the guest: a net.Conn with
// CloseRead and CloseWrite.
type guestConn struct {
	*gonet.TCPConn
	p *slot
}

func newGuestConn(p *slot) *guestConn { return &guestConn{gonet.NewTCPConn(p.wq, p.ep), p} }

// Close implements net.Conn. What was written still goes to the guest.
func (c *guestConn) Close() error {
	err := c.TCPConn.Close()
	c.p.closed()
	return err
}

// establish accepts a connection that the guest opens; nil if that failed.
func (s *session) establish(r *tcp.ForwarderRequest, p *slot) *guestConn {
	wq := new(waiter.Queue)
	ep, err := r.CreateEndpoint(wq)
	r.Complete(false)
	if err != nil {
		p.giveBack()
		return nil
	}
	p.hold(ep, wq)
	return newGuestConn(p)
}

// acceptTCP gives a connection of the guest's to a listener.
func (s *session) acceptTCP(r *tcp.ForwarderRequest, p *slot, l *listener) {
	if !l.reserve() {
		s.n.stats.full.Add(1)
		r.Complete(true)
		p.giveBack()
		return
	}
	c := s.establish(r, p)
	if c == nil {
		l.cancel()
		return
	}
	l.deliver(c)
}

var _ net.Conn = (*guestConn)(nil)
