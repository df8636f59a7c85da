package remote

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/wire"
)

// An agent that reads nothing holds up what has a context until that ends, and the rest
// not for long.
func TestAgentReadsNothing(t *testing.T) {
	bounded := func(do func(ctx context.Context, g *Guest) error) func(t *testing.T, g *Guest) {
		return func(t *testing.T, g *Guest) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			require.ErrorIs(t, do(ctx, g), context.DeadlineExceeded)
		}
	}
	for name, do := range map[string]func(t *testing.T, g *Guest){
		"Start": bounded(func(ctx context.Context, g *Guest) error { return g.CommandContext(ctx, "x").Start() }),
		"Ping":  bounded(func(ctx context.Context, g *Guest) error { return g.Ping(ctx) }),
		"Sync":  bounded(func(ctx context.Context, g *Guest) error { return g.Sync(ctx) }),
		"an early command": bounded(func(ctx context.Context, g *Guest) error {
			c := g.CommandContext(ctx, "x")
			_, err := c.Early()
			require.NoError(t, err)
			return c.Wait()
		}),
		"a signal": func(t *testing.T, g *Guest) {
			c := g.Command("x")
			_, err := c.Early()
			require.NoError(t, err)
			require.ErrorIs(t, c.Signal(syscall.SIGTERM), context.DeadlineExceeded)
			require.ErrorIs(t, c.Resize(24, 80), context.DeadlineExceeded)
			require.ErrorIs(t, g.SetClock(time.Now()), context.DeadlineExceeded)
		},
		"a guest that goes": func(t *testing.T, g *Guest) {
			began := async(g.Command("x").Start)
			synctest.Wait()
			g.Fail(wire.ErrFrame)
			require.ErrorIs(t, <-began, wire.ErrFrame)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, _, _ := inBubble(t)
				_, err := g.Ready(t.Context())
				require.NoError(t, err)
				do(t, g)
				require.NoError(t, g.Close())
			})
		})
	}
}

// The agent hears the host's time with the first frame, whatever else is said to it.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		g := New(p, Options{Secret: secret})
		defer g.Close()
		began := time.Now().UnixNano()
		ping := async(func() error { return g.Ping(t.Context()) })
		c := p.dial(t, wire.Preface{Stream: wire.Control})
		time.Sleep(time.Second)
		a := &agent{t: t, Conn: c, out: wire.NewWriter(c)}
		a.say(wire.KindHello, wire.Hello{})
		_, err := g.Ready(t.Context())
		require.NoError(t, err)
		var clock wire.Clock
		a.next(wire.KindClock, &clock)
		require.Equal(t, wire.Clock{Unix: began + int64(time.Second), Hello: true}, clock)
		var seq wire.Ping
		a.next(wire.KindPing, &seq)
		a.say(wire.KindPong, seq)
		require.NoError(t, <-ping)
		// Once.
		renew := async(g.Renew)
		a.next(wire.KindRenew, &wire.Renew{})
		require.NoError(t, <-renew)
	})
}

// A command that nobody waits for any more is not left running when the agent reads at last.
func TestKillBehindTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, a := inBubble(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, g.CommandContext(ctx, "x").Run(), context.DeadlineExceeded)
		time.Sleep(time.Hour)
		var w wire.Command
		a.next(wire.KindStart, &w)
		var s wire.Signal
		a.next(wire.KindSignal, &s)
		require.Equal(t, wire.Signal{ID: w.ID, Signal: 9}, s)
	})
}
