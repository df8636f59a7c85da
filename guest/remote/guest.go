package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vole-vmm/vole/guest/wire"
)

// Errors of a Guest and its commands.
var (
	// ErrLost says that the agent's connection has ended, and nobody said why.
	ErrLost = errors.New("the agent in the guest has gone")
	// ErrClosed is what waits for a Guest that was closed end with.
	ErrClosed = errors.New("the guest was closed")
	// ErrProtocol says that what came from the guest makes no sense.
	ErrProtocol = errors.New("the agent in the guest does not keep to the protocol")
)

const (
	// maxConns bounds the agent's connections: those of a command are up to four, also
	// for as long as they take to close.
	maxConns = 1024
	// maxStrangers is how many others there may be, which any program of the guest can
	// make: those that have not said what they are, and with the secret. strangerBound is
	// how long they may take to. The agent takes no time.
	maxStrangers  = 128
	strangerBound = 10 * time.Second
	// maxCode and maxSignal are the largest that Linux has.
	maxCode   = 255
	maxSignal = 64
	// lostBound is how long what a guest has sent may take to be passed on when it has
	// gone, and how long an agent may take to read what is said to it in passing.
	lostBound = 2 * time.Second
	// drainBound is how long the rest of a command's output may take to come once
	// it has ended: the agent sends it before it says so.
	drainBound = 30 * time.Second
)

// Options are what a Guest is made of.
type Options struct {
	// Secret is what the agent's Config has, too. Zero is one that New makes.
	Secret wire.Secret
	// Logger receives what the agent wants to be known, and connections that make
	// no sense; nil is silent.
	Logger *slog.Logger
	// Lost, if set, is called once when the agent has gone, with the reason as far as
	// it is known here. What waits for the guest then waits for Fail or Close, which
	// the caller owes: it may know more. Without it the Guest fails by itself.
	Lost func(error)
}

// Guest is the agent of one guest, before and after it has connected. Its methods may
// be called from any goroutine.
type Guest struct {
	l      net.Listener
	log    *slog.Logger
	lost   func(error)
	secret wire.Secret

	ready chan struct{} // closed when hello is there
	done  chan struct{} // closed when err is there: nothing more comes of the guest
	gone  chan struct{} // closed, once, some time after Close: what still waits is left behind
	turn  chan struct{} // has a token while a frame is written
	close sync.Once

	mu        sync.Mutex
	hello     wire.Hello
	out       *wire.Writer // the control connection, nil until there is one
	err       error
	nextID    uint32
	running   map[uint32]*Cmd
	conns     map[net.Conn]bool // of the agent's all that are open; true for what may be a command's output
	strangers []net.Conn        // that are yet to say what they are, the oldest first
	pings     map[uint64]chan struct{}
	nextSeq   uint64
	logged    time.Time // the last line that the guest has caused
	held      int       // such lines since

	workers sync.WaitGroup
}

// New begins to serve l, which is the Guest's from then on. Close ends it.
func New(l net.Listener, o Options) *Guest {
	g := &Guest{
		l: l, log: o.Logger, lost: o.Lost, secret: o.Secret,
		ready: make(chan struct{}), done: make(chan struct{}), gone: make(chan struct{}), turn: make(chan struct{}, 1),
		running: make(map[uint32]*Cmd),
		conns:   make(map[net.Conn]bool),
		pings:   make(map[uint64]chan struct{}),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if g.lost == nil {
		g.lost = g.Fail
	}
	if g.secret.Equal(wire.Secret{}) {
		g.secret = wire.NewSecret()
	}
	g.workers.Go(g.serve)
	return g
}

// Secret is what the agent has to know, for its Config.
func (g *Guest) Secret() wire.Secret { return g.secret }

// Ready waits for the agent and returns what it said. The error is ctx's, or why there
// will be no agent.
func (g *Guest) Ready(ctx context.Context) (wire.Hello, error) {
	if hello, ok := g.Hello(); ok {
		return hello, nil
	}
	select {
	case <-g.ready:
		hello, _ := g.Hello()
		return hello, nil
	case <-g.done:
		return wire.Hello{}, g.Err()
	case <-ctx.Done():
		return wire.Hello{}, ctx.Err()
	}
}

// Hello is what the agent said when it was ready, also when it has gone since; false if
// it has not been.
func (g *Guest) Hello() (wire.Hello, bool) {
	select {
	case <-g.ready:
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.hello, true
	default:
		return wire.Hello{}, false
	}
}

// Done is closed when the agent has gone, or the Guest failed or was closed.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Err is why Done is closed, nil before that.
func (g *Guest) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Fail ends the guest's commands, and all waits for it, with err, unless something else
// has before. The caller knows more than this package does: that the machine has ended,
// and how.
func (g *Guest) Fail(err error) {
	g.mu.Lock()
	if g.err != nil {
		g.mu.Unlock()
		return
	}
	g.err = err
	conns := make([]net.Conn, 0, len(g.conns))
	for _, c := range g.strangers { // one may be a command's output
		_ = c.SetReadDeadline(time.Now().Add(lostBound))
	}
	for c, output := range g.conns {
		// What has come of a command's output is still passed on.
		if output {
			_ = c.SetReadDeadline(time.Now().Add(lostBound))
			continue
		}
		conns = append(conns, c)
	}
	g.mu.Unlock()
	close(g.done)
	_ = g.l.Close()
	for _, c := range conns {
		_ = c.Close()
	}
}

// Close is Fail with ErrClosed, joins every goroutine but those that wait for a reader or
// writer of the caller's which can't be interrupted, and closes every connection.
func (g *Guest) Close() error {
	g.Fail(ErrClosed)
	late := time.AfterFunc(2*lostBound, func() { g.close.Do(func() { close(g.gone) }) })
	defer late.Stop()
	g.workers.Wait()
	g.mu.Lock()
	conns := slices.Collect(maps.Keys(g.conns)) // of commands that nobody waits for
	clear(g.conns)
	g.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
	return nil
}

// serve accepts connections until the listener is closed.
func (g *Guest) serve() {
	for {
		c, err := g.l.Accept()
		if err != nil {
			if g.Err() == nil {
				g.lost(fmt.Errorf("%w: %w", ErrLost, err))
			}
			return
		}
		if !g.meet(c) {
			_ = c.Close()
			continue
		}
		g.workers.Go(func() { g.greet(c) })
	}
}

// meet notes a connection that is yet to say what it is; false if the end has come. If there
// are too many, the one that has said nothing for longest is closed.
func (g *Guest) meet(c net.Conn) bool {
	var oldest net.Conn
	g.mu.Lock()
	if g.err != nil {
		g.mu.Unlock()
		return false
	}
	if len(g.strangers) >= maxStrangers {
		oldest = g.strangers[0]
		g.strangers = slices.Delete(g.strangers, 0, 1)
	}
	g.strangers = append(g.strangers, c)
	_ = c.SetReadDeadline(time.Now().Add(strangerBound))
	g.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	return true
}

// admit takes a stranger for the agent's; false if there are too many of those, or it was
// closed.
func (g *Guest) admit(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.strangers, c)
	if i < 0 || len(g.conns) >= maxConns {
		return false
	}
	g.strangers = slices.Delete(g.strangers, i, i+1)
	g.conns[c] = true
	return true
}

// hold says whether a connection carries output that is to be read to its end.
func (g *Guest) hold(c net.Conn, output bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[c] = output
	if g.err == nil {
		_ = c.SetReadDeadline(time.Time{})
	}
}

// drop closes a connection.
func (g *Guest) drop(c net.Conn) {
	g.mu.Lock()
	delete(g.conns, c)
	if i := slices.Index(g.strangers, c); i >= 0 {
		g.strangers = slices.Delete(g.strangers, i, i+1)
	}
	g.mu.Unlock()
	_ = c.Close()
}

// greet finds out what a connection is.
func (g *Guest) greet(c net.Conn) {
	p, err := wire.ReadPreface(c, g.secret)
	if err == nil && !g.admit(c) {
		err = errTooMany
	}
	if err != nil {
		g.refuse(c, err)
		return
	}
	if p.Stream == wire.Control {
		g.hold(c, false)
		g.control(c)
		return
	}
	g.mu.Lock()
	cmd := g.running[p.Command]
	g.mu.Unlock()
	if cmd == nil || !cmd.attach(int(p.Stream), c) {
		g.refuse(c, fmt.Errorf("%w: stream %d of command %d, which has none", ErrProtocol, p.Stream, p.Command))
	}
}

var errTooMany = errors.New("there are too many")

func (g *Guest) refuse(c net.Conn, err error) {
	if held, ok := g.mayLog(); ok && g.Err() == nil {
		g.log.Warn("a connection of the guest is refused", "error", err, "unreported", held)
	}
	g.drop(c)
}

// mayLog lets one line a second through that the guest has caused, and says how many
// were held back before it.
func (g *Guest) mayLog() (held int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if now.Sub(g.logged) < time.Second {
		g.held++
		return 0, false
	}
	held, g.logged, g.held = g.held, now, 0
	return held, true
}

// control serves the control connection until it ends, and with it the guest.
func (g *Guest) control(c net.Conn) {
	w := wire.NewWriter(c)
	g.mu.Lock()
	second := g.out != nil
	if !second {
		g.out = w
	}
	g.mu.Unlock()
	if second {
		g.refuse(c, fmt.Errorf("%w: a second control connection", ErrProtocol))
		return
	}
	err := g.frames(c)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = ErrLost
	} else if !errors.Is(err, ErrProtocol) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	if g.Err() == nil {
		g.lost(err)
	}
	g.drop(c)
}

// frames reads frames until the end of the connection, which the error says.
func (g *Guest) frames(c net.Conn) error {
	r := bufio.NewReader(c)
	for {
		f, err := wire.ReadFrame(r)
		if err == nil {
			err = g.frame(f)
		}
		if errors.Is(err, wire.ErrFrame) {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if err != nil {
			return err
		}
	}
}

// frame takes one frame of the agent.
func (g *Guest) frame(f wire.Frame) error {
	switch f.Kind {
	case wire.KindHello:
		var m wire.Hello
		if err := f.Decode(&m); err != nil {
			return err
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		select {
		case <-g.ready:
			return fmt.Errorf("%w: a second hello", ErrProtocol)
		default:
		}
		g.hello = cleanHello(m)
		g.tellClock()
		close(g.ready)
	case wire.KindStarted:
		var m wire.Started
		if err := f.Decode(&m); err != nil {
			return err
		}
		if cmd := g.command(m.ID); cmd != nil {
			cmd.started(m)
		}
	case wire.KindFailed:
		var m wire.Failed
		if err := f.Decode(&m); err != nil {
			return err
		}
		if cmd := g.command(m.ID); cmd != nil {
			cmd.finish(nil, &StartError{Errno: m.Errno, Cause: m.Cause, What: clean(m.What)})
		}
	case wire.KindExited:
		var m wire.Exited
		if err := f.Decode(&m); err != nil {
			return err
		}
		if m.Code < 0 || m.Code > maxCode || m.Signal < 0 || m.Signal > maxSignal || m.OOMKills < 0 {
			return fmt.Errorf("%w: a command ended with code %d, signal %d, %d killed", ErrProtocol, m.Code, m.Signal, m.OOMKills)
		}
		m.What = clean(m.What)
		if l := m.Lost; l != nil {
			if l.Stream < 1 || l.Stream > wire.Terminal {
				return fmt.Errorf("%w: stream %d is no output that can be lost", ErrProtocol, l.Stream)
			}
			l.What = clean(l.What)
		}
		if l := m.LostInput; l != nil {
			if l.Stream != 0 && l.Stream != wire.Terminal {
				return fmt.Errorf("%w: stream %d is no input that can be lost", ErrProtocol, l.Stream)
			}
			l.What = clean(l.What)
		}
		if cmd := g.command(m.ID); cmd != nil {
			cmd.finish(&ProcessState{pid: cmd.pid(), exit: m}, nil)
		}
	case wire.KindPong:
		var m wire.Ping
		if err := f.Decode(&m); err != nil {
			return err
		}
		g.mu.Lock()
		answered := g.pings[m.Seq]
		delete(g.pings, m.Seq)
		g.mu.Unlock()
		if answered != nil {
			close(answered)
		}
	case wire.KindLog:
		var m wire.Log
		if err := f.Decode(&m); err != nil {
			return err
		}
		if held, ok := g.mayLog(); ok {
			g.log.Info("guest: "+clean(m.Text), "unreported", held)
		}
	}
	return nil
}

func (g *Guest) command(id uint32) *Cmd {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running[id]
}

// send says something to the agent, which must be ready. One that reads nothing is waited
// for until ctx ends, and is still told then if the frame's turn had come.
func (g *Guest) send(ctx context.Context, k wire.Kind, v any) error {
	select {
	case g.turn <- struct{}{}:
	case <-g.done:
		return g.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	sent := make(chan error, 1)
	g.mu.Lock()
	w, err := g.out, g.err
	if err == nil && w == nil {
		err = ErrLost
	}
	if err == nil {
		g.workers.Go(func() {
			sent <- w.Write(k, v)
			<-g.turn
		})
	}
	g.mu.Unlock()
	if err != nil {
		<-g.turn
		return err
	}
	select {
	case err = <-sent:
	case <-g.done:
		return g.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	if gone := g.Err(); err != nil && gone != nil {
		return gone
	}
	return err
}

// tell is send with a bound, for what is said without a context.
func (g *Guest) tell(k wire.Kind, v any) error {
	ctx, cancel := context.WithTimeout(context.Background(), lostBound)
	defer cancel()
	err := g.send(ctx, k, v)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the agent in the guest does not read: %w", err)
	}
	return err
}

// ask sends what the agent answers with KindPong, and waits for that.
func (g *Guest) ask(ctx context.Context, k wire.Kind, body func(seq uint64) any) error {
	if _, err := g.Ready(ctx); err != nil {
		return err
	}
	answered := make(chan struct{})
	g.mu.Lock()
	g.nextSeq++
	seq := g.nextSeq
	g.pings[seq] = answered
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.pings, seq)
		g.mu.Unlock()
	}()
	if err := g.send(ctx, k, body(seq)); err != nil {
		return err
	}
	select {
	case <-answered:
		return nil
	case <-g.done:
		return g.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ping waits until the agent answers.
func (g *Guest) Ping(ctx context.Context) error {
	return g.ask(ctx, wire.KindPing, func(seq uint64) any { return wire.Ping{Seq: seq} })
}

// Sync has the guest kill what runs, write all that is not written yet, and waits for
// that. Nothing can be run afterwards: the machine can be ended without loss.
func (g *Guest) Sync(ctx context.Context) error {
	return g.ask(ctx, wire.KindPoweroff, func(seq uint64) any { return wire.Poweroff{SyncOnly: true, Seq: seq} })
}

// Poweroff asks the guest to power off; the machine's own end says that it has.
func (g *Guest) Poweroff() error { return g.tell(wire.KindPoweroff, wire.Poweroff{}) }

// Renew has the guest look up the names of its root anew.
func (g *Guest) Renew() error { return g.tell(wire.KindRenew, wire.Renew{}) }

// tellClock tells the agent the host's time, before who waits for it says something. Nobody
// waits for that. The lock is held.
func (g *Guest) tellClock() {
	if g.err != nil {
		return
	}
	clock := wire.Clock{Unix: time.Now().UnixNano(), Hello: true}
	select {
	case g.turn <- struct{}{}:
		g.workers.Go(func() {
			_ = g.out.Write(wire.KindClock, clock)
			<-g.turn
		})
	default: // something is being said that is not for an agent that is ready
		g.workers.Go(func() { _ = g.tell(wire.KindClock, clock) })
	}
}

// SetClock sets the guest's clock, unless that is right to 10 ms. The agent has had the
// host's time when it was ready.
func (g *Guest) SetClock(t time.Time) error {
	return g.tell(wire.KindClock, wire.Clock{Unix: t.UnixNano()})
}
