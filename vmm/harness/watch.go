package harness

import (
	"context"
	"fmt"
	"time"
)

const (
	// tick is how exactly the bounds are kept. They are counted in ticks, so that a
	// process that was stopped for a while does not take that for the guest's silence.
	tick = 250 * time.Millisecond
	// pingEvery is how often the agent is asked whether it is there.
	pingEvery = 10 * time.Second
	// endBound is how long the machine may take to say how it ended when the agent has
	// gone.
	endBound = 10 * time.Second
)

// watch follows the guest until it can serve no command any more.
func (m *Machine) watch() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	w := watcher{m: m}
	defer w.stop()
	for {
		select {
		case <-m.quit:
			return
		case <-m.vm.Done():
			m.ended()
			return
		case err := <-m.lost:
			m.gone(err)
			return
		case <-w.pong:
			w.pong, w.asked = nil, 0
		case <-ticker.C:
			if f := w.tick(); f != nil {
				m.fail(f)
				return
			}
		}
	}
}

// watcher counts the ticks of silence.
type watcher struct {
	m       *Machine
	ready   bool
	booting time.Duration // since the start
	silent  time.Duration // since the last sign of life
	seen    uint32
	idle    time.Duration // since the last question
	asked   time.Duration // since the question that is not answered
	pong    chan struct{}
	cancel  context.CancelFunc
}

func (w *watcher) tick() *Failure {
	o := &w.m.o
	if !w.ready {
		if _, up := w.m.guest.Hello(); !up {
			if w.booting += tick; w.booting >= o.BootBound {
				return &Failure{Kind: Hang, Text: w.notUp()}
			}
			return nil
		}
		w.ready = true
	}
	if now := w.m.activity.Load(); now != w.seen || w.m.awaited.Load() > 0 {
		w.seen, w.silent = now, 0
	} else if w.silent += tick; o.Hang > 0 && w.silent >= o.Hang {
		return &Failure{Kind: Hang, Text: fmt.Sprintf("nothing has come of the guest for %v", o.Hang)}
	}
	if o.Silence < 0 {
		return nil
	}
	if w.pong != nil {
		if w.asked += tick; w.asked >= o.Silence {
			return &Failure{Kind: Hang, Text: fmt.Sprintf("the guest has not answered for %v", o.Silence)}
		}
		return nil
	}
	if w.idle += tick; w.idle >= min(pingEvery, o.Silence) {
		w.idle = 0
		w.ask()
	}
	return nil
}

func (w *watcher) ask() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	pong := make(chan struct{})
	w.pong = pong
	w.m.watching.Go(func() {
		defer cancel()
		if w.m.guest.Ping(ctx) == nil {
			close(pong)
		}
	})
}

func (w *watcher) stop() {
	if w.cancel != nil {
		w.cancel()
	}
}

// notUp says that the agent is not there, and what is known of the reason.
func (w *watcher) notUp() string {
	text := fmt.Sprintf("the guest has not come up within %v", w.m.o.BootBound)
	if w.m.missing != nil {
		text += fmt.Sprintf("; it may lack modules: %v", w.m.missing)
	}
	return text
}

// ended is called when the machine has ended by itself.
func (m *Machine) ended() {
	exit, err := m.vm.Wait(context.Background())
	if err != nil {
		m.fail(&Failure{Kind: Host, Text: err.Error(), err: err})
		return
	}
	f := failureOf(exit)
	tail := m.vm.ConsoleTail()
	if f.Kind == Panic {
		if why := panicLine(tail); why != "" && exit.Err == nil {
			f.Text += ": " + why
		}
	}
	if f.Kind == Panic || f.Kind == Ended {
		_, up := m.guest.Hello()
		if why := agentLine(tail); why != "" && !up && f.Kind == Ended {
			f.Text += ": " + why
		}
		if m.missing != nil && !up {
			f.Text += fmt.Sprintf(" (it may lack modules: %v)", m.missing)
		}
	}
	f.Console = deathScreen(tail)
	m.fail(f)
}

// gone is called when the agent has: the machine says why, if it ends as well.
func (m *Machine) gone(err error) {
	bound := time.NewTimer(endBound)
	defer bound.Stop()
	select {
	case <-m.quit:
	case <-m.vm.Done():
		m.ended()
	case <-bound.C:
		m.fail(&Failure{Kind: Ended, Text: err.Error(), err: err})
	}
}
