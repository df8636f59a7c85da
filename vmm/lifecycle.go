package vmm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vole-vmm/vole/devices"
)

// drainGrace bounds how long a machine that was ended from outside still
// writes what the guest had sent to its console.
const drainGrace = 250 * time.Millisecond

// Start lets the vCPUs run. It is ErrState unless the machine is newly
// created.
func (m *Machine) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != created {
		return m.wrongState("start")
	}
	m.state = running
	m.left = len(m.vcpus)
	m.serial.Start()
	for _, c := range m.vcpus {
		go c.loop()
	}
	go m.supervise()
	return nil
}

// Wait returns how the machine ended, once everything of it stands still and
// its console has been written. It is ErrState before Start, and ctx's error
// if that is done earlier; the machine then goes on.
func (m *Machine) Wait(ctx context.Context) (Exit, error) {
	m.mu.Lock()
	if m.state == created {
		defer m.mu.Unlock()
		return Exit{}, m.wrongState("wait for")
	}
	m.mu.Unlock()
	select {
	case <-m.done:
		return m.exit, nil
	default:
	}
	select {
	case <-m.done:
		return m.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Done is closed when the machine has ended and Wait would return at once.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Pause stops every vCPU between two instructions, with no port or memory
// access of theirs half done, and every device between two requests, and
// returns when they stand still. A paused machine is left as it is. The timeout
// of Config goes on. The error wraps ErrBusy when a device's backend keeps
// requests in flight: the machine is paused, and that device comes to rest
// later.
func (m *Machine) Pause() error {
	if len(m.virtio) == 0 {
		return m.pauseCPUs()
	}
	m.quiesce.Lock()
	defer m.quiesce.Unlock()
	if err := m.pauseCPUs(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.mu.Lock()
	still := m.state == paused
	m.stopPause = cancel
	m.mu.Unlock()
	if !still {
		return m.overtaken()
	}
	err := m.pauseDevices(ctx)
	if ctx.Err() != nil {
		return m.overtaken()
	}
	return err
}

// overtaken is the error of a Pause that a Resume or the machine's end came
// before.
func (m *Machine) overtaken() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wrongState("pause")
}

func (m *Machine) pauseCPUs() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != running && m.state != paused {
		return m.wrongState("pause")
	}
	if m.state == running {
		m.state = paused
		m.serial.Hold()
		m.setGate(gatePause)
	}
	for m.state == paused && m.parked < m.left {
		m.cond.Wait()
	}
	if m.state != paused {
		return m.wrongState("pause")
	}
	return nil
}

// Resume lets a paused machine go on. A running machine is left as it is.
func (m *Machine) Resume() error {
	if err := m.resumeCPUs(); err != nil || len(m.virtio) == 0 {
		return err
	}
	m.quiesce.Lock()
	defer m.quiesce.Unlock()
	m.mu.Lock()
	up := m.state == running // and not paused again meanwhile
	m.mu.Unlock()
	if up {
		m.resumeDevices()
	}
	return nil
}

func (m *Machine) resumeCPUs() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopPause != nil {
		m.stopPause()
	}
	if m.state != running && m.state != paused {
		return m.wrongState("resume")
	}
	// A pause that still waits for vCPUs gives up: it finds the machine
	// running.
	if m.state == paused {
		m.state = running
		m.serial.Release()
		m.setGate(gateRun)
	}
	return nil
}

// PowerButton presses the machine's ACPI power button. Whether anything
// follows is the guest's: Debian's kernels have the button's driver as a
// module. Callers bound their wait for the end.
func (m *Machine) PowerButton() error {
	m.pressing.RLock() // free waits for it: the press writes to a descriptor
	defer m.pressing.RUnlock()
	m.mu.Lock()
	up := m.state == running || m.state == paused
	err := m.wrongState("press the power button of")
	m.mu.Unlock()
	if !up {
		return err
	}
	m.power.PressPowerButton() // not under mu: the device's own events take that
	return nil
}

// Kill ends the machine with the reason Killed, and an ended one's wait for
// its console. It does not wait. It is ErrState before Start.
func (m *Machine) Kill() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == created {
		return m.wrongState("kill")
	}
	m.endLocked(Exit{Reason: Killed})
	m.hurryLocked()
	return nil
}

// Close ends the machine if it runs and gives back all that it took: it
// returns when no goroutine, descriptor or mapping of it is left, but for what
// the package comment says of streams without deadlines. Closing again, also
// at the same time, is harmless. Its error is that of giving back, or
// devices.ErrUnflushed when ConsoleOut did not take all that the guest sent. It
// wraps ErrBusy when a device's backend keeps requests in flight: guest memory
// and the interrupts' descriptors then stay, since the device may come back.
func (m *Machine) Close() error {
	m.mu.Lock()
	if m.state == created {
		m.state = stopped
		m.exit = Exit{Reason: Killed}
		close(m.ended)
		close(m.done)
	} else {
		m.endLocked(Exit{Reason: Killed})
	}
	m.hurryLocked()
	m.mu.Unlock()
	<-m.done
	return errors.Join(m.free(), m.closeDevices())
}

func (m *Machine) wrongState(verb string) error {
	return fmt.Errorf("vmm: can't %s a machine that is %s: %w", verb, m.state, ErrState)
}

// setGate changes the gate under mu and makes every vCPU look at it.
func (m *Machine) setGate(g uint32) {
	m.gate.Store(g)
	for _, c := range m.vcpus {
		if g == gateRun {
			// A vCPU that has not looked since it was kicked never comes to
			// hold, which would take the kick back.
			c.kvm.SetImmediateExit(false)
		} else {
			c.kick()
		}
	}
	m.cond.Broadcast()
}

// end ends the machine, if nothing has ended it before.
func (m *Machine) end(e Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(e)
}

func (m *Machine) endLocked(e Exit) {
	if m.state != running && m.state != paused {
		return
	}
	m.state = stopping
	m.exit = e
	m.times.mark(MarkExit)
	if m.stopPause != nil {
		m.stopPause()
	}
	m.setGate(gateStop)
	close(m.ended)
}

func (m *Machine) hurryLocked() {
	if !m.hasty {
		m.hasty = true
		close(m.hurry)
	}
}

// hold is where a vCPU waits while the gate is shut. It returns whether the
// vCPU is to go on.
func (m *Machine) hold(c *vcpu) bool {
	if m.gate.Load() == gatePause {
		c.settle()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parked++
	m.cond.Broadcast()
	for m.gate.Load() == gatePause {
		m.cond.Wait()
	}
	m.parked--
	if m.gate.Load() == gateStop {
		return false
	}
	c.kvm.SetImmediateExit(false) // under mu, so no kick is wiped out
	return true
}

// gone is a vCPU thread's last word.
func (m *Machine) gone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left--
	m.cond.Broadcast()
}

// supervise waits for the machine's end and its bounds, then joins all that
// Start began. It alone closes done.
func (m *Machine) supervise() {
	var timeout, grace, glance timer
	still := vigil{m: m}
	still.start()
	defer still.timer.stop()
	defer glance.stop()
	defer grace.stop()
	defer timeout.stop()
	if m.cfg.Timeout > 0 {
		timeout.set(m.cfg.Timeout)
	}
	for waiting := true; waiting; {
		select {
		case <-m.ended:
			waiting = false
		case <-timeout.c():
			m.end(Exit{Reason: Timeout})
		case <-grace.c():
			m.end(Exit{Reason: Panic})
		case <-still.timer.c():
			if still.look() {
				m.end(Exit{Reason: m.deathOr(TripleFault), Err: m.deadError()})
			}
		case <-m.collector.wake:
			m.collector.touched.Store(true)
			glance.set(glanceMin)
		case <-glance.c():
			if next := m.glance(); next > 0 {
				glance.set(next)
			}
		case <-m.deaths.wake:
			if d := m.deaths.take(); d >= 0 {
				grace.set(d)
			} else {
				grace.stop()
			}
		}
	}
	m.serial.Hold()
	m.mu.Lock()
	for m.left > 0 {
		m.cond.Wait()
	}
	m.mu.Unlock()
	m.vcpus[0].kvm.DrainCoalesced(m.collected) // the guest's last words
	m.restless = m.restDevices()
	if m.exit.Err == nil {
		m.exit.Err = m.restless
	}
	m.drain(&timeout)
	m.mu.Lock()
	m.state = stopped
	m.mu.Unlock()
	close(m.done)
}

// drain hands to ConsoleOut what the guest has sent. A guest's own end waits
// for a slow reader until it is killed or times out; an end from outside only
// briefly.
func (m *Machine) drain(timeout *timer) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var watch sync.WaitGroup
	stop := make(chan struct{})
	watch.Go(func() {
		var brief timer
		defer brief.stop()
		if m.exit.Reason == Timeout || m.exit.Reason == Killed {
			brief.set(drainGrace)
		}
		hurry := m.hurry
		for {
			select {
			case <-stop:
				return
			case <-hurry:
				hurry = nil
				brief.set(drainGrace)
			case <-timeout.c():
				brief.set(drainGrace)
			case <-brief.c():
				cancel()
				return
			}
		}
	})
	err := m.serial.Drain(ctx)
	for _, c := range m.consoles {
		if cerr := c.Drain(ctx); err == nil {
			err = cerr
		}
	}
	close(stop)
	watch.Wait()
	if err == nil {
		err = m.serial.OutErr()
	}
	if cerr := m.serial.Close(); err == nil {
		err = cerr
	}
	if err != nil && m.exit.Err == nil {
		m.exit.Err = fmt.Errorf("vmm: console output: %w", err)
	}
}

// event is the Sink of the machine's devices: a vCPU thread says what the
// guest asked for.
func (m *Machine) event(e devices.Event) {
	switch e.Kind {
	case devices.Poweroff:
		m.end(Exit{Reason: Poweroff})
	case devices.Reset:
		m.end(Exit{Reason: m.deathOr(Reset)})
	case devices.DebugExit:
		m.end(Exit{Reason: DebugExit, Code: int(e.Value)})
	case devices.Panic:
		m.deaths.certainly(m.cfg.PanicGrace / 10)
	case devices.CrashLoaded:
		m.deaths.certainly(-1) // its crash kernel saves what it can, and resets
	case devices.BootMark:
		m.times.mark(MarkInit)
	}
}

// deathOr is what a reset or a triple fault means: the end of a panic, if the
// kernel has panicked.
func (m *Machine) deathOr(r Reason) Reason {
	if m.console.panicked() || m.deaths.certain() {
		return Panic
	}
	return r
}

// consoleEvent is told what the guest's console says of it, on a vCPU thread or
// supervise's, and inside the serial port's lock: it only leaves notes.
func (m *Machine) consoleEvent(e consoleEvent) {
	switch e.kind {
	case consoleFirstByte:
		m.times.mark(MarkConsole)
	case consoleInit:
		m.times.mark(MarkInit)
	case consolePanic:
		m.deaths.report(m.cfg.PanicGrace + e.delay)
	case consoleRevived, consoleCrashKernel:
		m.deaths.report(-1)
	}
}

// deathNote carries word of a guest's panic from its vCPU threads to
// supervise, without blocking them.
type deathNote struct {
	wake chan struct{} // capacity 1

	mu    sync.Mutex
	grace time.Duration // how long to wait now; negative: it lives
	sure  bool          // pvpanic said so: no console output takes it back
}

// report tells what the console's words mean, which pvpanic overrules.
func (d *deathNote) report(grace time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.sure {
		d.set(grace)
	}
}

// certainly tells what pvpanic says; its first word counts.
func (d *deathNote) certainly(grace time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.sure {
		d.sure = true
		d.set(grace)
	}
}

func (d *deathNote) set(grace time.Duration) {
	d.grace = grace
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *deathNote) take() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.grace
}

func (d *deathNote) certain() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sure
}

// timer is a time.Timer that may not be set.
type timer struct{ t *time.Timer }

func (t *timer) set(d time.Duration) {
	if t.t == nil {
		t.t = time.NewTimer(d)
		return
	}
	t.t.Reset(d)
}

func (t *timer) stop() {
	if t.t != nil {
		t.t.Stop()
	}
}

func (t *timer) c() <-chan time.Time {
	if t.t == nil {
		return nil
	}
	return t.t.C
}
