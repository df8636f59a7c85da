package remote

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// pipes is a listener in memory, for tests in which time is not this machine's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return nil }

// connect returns the other end of a connection that the listener has accepted, nil if it
// was closed.
func (p *pipes) connect() net.Conn {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours
	case <-p.closed:
		return nil
	}
}

func (p *pipes) dial(t *testing.T, f wire.Preface) net.Conn {
	c := p.connect()
	require.NotNil(t, c)
	t.Cleanup(func() { c.Close() })
	_, err := c.Write(f.Append(nil, secret))
	require.NoError(t, err)
	return c
}

// inBubble makes a Guest and its agent, to be called in a bubble of synctest's.
func inBubble(t *testing.T) (*Guest, *pipes, *agent) {
	p := newPipes()
	g := New(p, Options{Secret: secret})
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	c := p.dial(t, wire.Preface{Stream: wire.Control})
	a := &agent{t: t, Conn: c, out: wire.NewWriter(c)}
	a.say(wire.KindHello, wire.Hello{})
	a.next(wire.KindClock, &wire.Clock{})
	return g, p, a
}
