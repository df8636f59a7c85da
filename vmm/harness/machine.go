package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/guest"
	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
	"github.com/vole-vmm/vole/virtio/vsock"
	"github.com/vole-vmm/vole/vmm"
)

// defaultCID is the guest's context id. Each machine may have the same.
const defaultCID = 3

// Machine is a machine on which commands run. Its methods may be called from any
// goroutine.
type Machine struct {
	o       Options
	guest   *remote.Guest
	sockets *vsock.Device
	console *console
	missing error // why there are no modules, or perhaps not all
	archive agentArchive

	vm       *vmm.Machine
	devices  []virtio.Device
	shares   []*fs.Device  // of these, those that share files
	activity atomic.Uint32 // changes with each sign of life
	awaited  atomic.Int32  // how many writes the guest waits for, and not we for it
	changed  chan struct{} // has a token if the guest's names may be wrong

	mu      sync.Mutex
	started bool
	closing bool // an end of the machine is no failure
	why     *Failure
	oops    *Failure // the one that ends the guest, from its line on

	watching sync.WaitGroup
	lost     chan error // why the agent has gone
	quit     chan struct{}
	close    sync.Once
	closeErr error
}

// agentArchive collects what the guest's memory is filled from.
type agentArchive struct {
	config  wire.Config
	closers []io.Closer
	images  []boot.Image
}

// New checks the options, finds the modules and makes the machine's own devices. The
// first command may be put together with Guest before Start, which makes the machine and
// boots it. Errors wrap ErrOptions where the caller is to blame.
func New(o Options) (_ *Machine, err error) {
	o = o.withDefaults()
	m := &Machine{o: o, devices: o.Machine.Devices, lost: make(chan error, 2), changed: make(chan struct{}, 1), quit: make(chan struct{})}
	defer func() {
		if err != nil {
			m.release()
		}
	}()
	if err := o.check(); err != nil {
		return nil, err
	}
	var mounts []wire.Mount
	var root *wire.Root
	if !o.Root.None {
		writable, visible, beside, err := o.Root.split()
		if err != nil {
			return nil, err
		}
		device, err := m.rootDevice(beside)
		if err != nil {
			return nil, err
		}
		m.devices = append(m.devices, device)
		root = &wire.Root{Tag: RootTag, Overlay: true, Writable: writable, Visible: visible}
		if mounts, err = m.shareBeside(beside); err != nil {
			return nil, err
		}
	}
	m.sockets, err = vsock.New(vsock.Options{CID: o.CID, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	// First, since its driver is the first that is loaded.
	m.devices = append([]virtio.Device{m.sockets}, m.devices...)
	for _, d := range m.devices {
		if share, ok := d.(*fs.Device); ok {
			m.shares = append(m.shares, share)
		}
	}
	archive, dir, missing, err := m.o.modules(m.devices)
	if err != nil {
		return nil, err
	}
	m.missing = missing
	config := wire.Config{Port: wire.DefaultPort, Root: root, Mounts: append(mounts, o.Shares...), Hostname: o.Hostname, Net: o.Net, CorePattern: o.CorePattern}
	if archive != nil {
		config.Modules = archive.Load
		m.archive.closers = append(m.archive.closers, archive)
		m.archive.images = append(m.archive.images, archive)
	}
	if root != nil {
		if inside, ok := below(o.Root.Dir, dir); ok && dir != "" {
			root.ModulesDir = wire.Text(inside)
		}
	}
	listener, err := m.sockets.Listen(wire.DefaultPort)
	if err != nil {
		return nil, err
	}
	m.guest = remote.New(listener, remote.Options{Logger: o.Logger, Lost: m.agentGone})
	config.Secret = m.guest.Secret()
	m.archive.config = config
	m.console = &console{out: o.Console, active: m.Active, oops: m.oopsed}
	return m, nil
}

// below is the path of dir as a guest sees it whose root is root.
func below(root, dir string) (string, bool) {
	if root == "" {
		root = "/"
	}
	rel, err := filepath.Rel(root, dir)
	if err != nil || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.Join("/", rel), true
}

// rootDevice is the file system that the guest's root is made of. Directories that are
// shared beside it are not writable in it.
func (m *Machine) rootDevice(beside []sharedDir) (virtio.Device, error) {
	root := m.o.Root
	if root.Dir == "" {
		root.Dir = "/"
	}
	writable := slices.DeleteFunc(slices.Clone(root.Writable), func(dir string) bool {
		return slices.Contains(beside, sharedDir{path: dir})
	})
	dir, err := hostdir.New(hostdir.Options{
		Dir: root.Dir, ReadOnly: true, Writable: writable, Hidden: hiddenBelow(root.Dir), Owner: root.Owner, Xattr: true, Logger: m.o.Logger,
		Changed: m.rootChanged,
	})
	if err != nil {
		return nil, &refusal{err}
	}
	d, err := fs.New(dir, fs.Options{Tag: RootTag, Queues: max(m.o.Machine.CPUs, 1), Logger: m.o.Logger})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return d, nil
}

func hiddenBelow(root string) []string {
	if filepath.Clean(root) == "/" {
		return Hidden
	}
	return nil
}

// Guest is the agent in the guest, also before it is there.
func (m *Machine) Guest() *remote.Guest { return m.guest }

// Sockets is the machine's vsock device, for connections besides the agent's.
func (m *Machine) Sockets() *vsock.Device { return m.sockets }

// VM is the machine underneath, nil before Prepare or Start.
func (m *Machine) VM() *vmm.Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vm
}

// Start boots the machine, and makes it if Prepare has not. A first command, if not nil,
// is started by the agent itself. An error is that of vmm.New or of an unreadable Init;
// nothing runs then.
func (m *Machine) Start(ctx context.Context, first *remote.Cmd) error {
	if m.VM() == nil || first != nil {
		if err := m.Prepare(ctx, first); err != nil {
			return err
		}
	}
	if err := m.VM().Start(); err != nil {
		return err
	}
	m.watching.Go(m.watch)
	m.watching.Go(m.renew)
	return nil
}

// Prepare makes the machine that a Start without a command boots: what is wrong with the
// kernel, say, is known then, and nothing runs yet. It is called once. The machine's
// Timeout bounds it, too (a kernel may have to be unpacked): a *Failure says so.
func (m *Machine) Prepare(ctx context.Context, first *remote.Cmd) (err error) {
	m.mu.Lock()
	again := m.started || m.closing
	m.started = true
	m.mu.Unlock()
	if again {
		return fmt.Errorf("%w: prepared or started before, or closed", vmm.ErrState)
	}
	if first != nil {
		if m.archive.config.Command, err = first.Early(); err != nil {
			return err
		}
	}
	init, err := guest.AgentArchive(m.o.Init, m.archive.config)
	if err != nil {
		return err
	}
	// Read by vmm.New; nothing of it is needed afterwards.
	defer func() {
		_ = init.Close()
		m.closeImages()
	}()
	cfg := m.o.Machine
	cfg.Initrd, cfg.Initrds = "", append([]boot.Image{init}, m.archive.images...)
	cfg.Devices, cfg.ConsoleOut = m.devices, m.console
	m.devices = nil // the machine's from here on
	bounded := ctx
	if cfg.Timeout > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, cfg.Timeout)
		defer cancel()
	}
	vm, err := vmm.NewContext(bounded, cfg)
	if err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			f := failureOf(vmm.Exit{Reason: vmm.Timeout})
			f.err = err
			return f
		}
		return err
	}
	m.mu.Lock()
	m.vm = vm
	m.mu.Unlock()
	return nil
}

// agentGone has watch find out why.
func (m *Machine) agentGone(err error) {
	select {
	case m.lost <- err:
	default: // it is known
	}
}

// Active says that the guest has given a sign of life.
func (m *Machine) Active() { m.activity.Add(1) }

// Await says that a write of what came of the guest begins, which may take as long as its
// reader does, and Awaited that it is over: in between the guest's silence is not its own,
// and Options.Hang does not count.
func (m *Machine) Await() {
	m.awaited.Add(1)
	m.Active()
}

// Awaited ends what Await has begun.
func (m *Machine) Awaited() {
	m.Active()
	m.awaited.Add(-1)
}

// Failure is why the guest can serve no command any more, nil as long as it can, or was
// ended by Shutdown or Close without an oops that is fatal.
func (m *Machine) Failure() *Failure {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

// Done is closed when the guest can serve no command any more.
func (m *Machine) Done() <-chan struct{} { return m.guest.Done() }

// Screen is the last of what the guest wrote to its console: a screen at most.
func (m *Machine) Screen() []byte {
	vm := m.VM()
	if vm == nil {
		return nil
	}
	return screen(vm.ConsoleTail())
}

// ConsoleError is why Options.Console does not have all of the console, nil if it has.
func (m *Machine) ConsoleError() error { return m.console.failed() }

// Shutdown ends the guest without loss: what runs is killed, everything written goes to
// the machine's disks and to the host's files, and the machine ends. Files that are shared
// are written as any program of the host's writes them: when they come to the host's
// disks is the host's matter, unless the guest has synced them before. The error is why that could not be made sure
// of within ctx, or, if Options.FatalOops is set, the *Failure of an oops: also one whose
// process was the last that ran. Close is still to be called.
func (m *Machine) Shutdown(ctx context.Context) error {
	vm := m.VM()
	if vm == nil {
		return ErrNotStarted
	}
	// A guest that writes to its disks has nothing to say; ctx bounds that.
	m.Await()
	defer m.Awaited()
	for _, d := range m.shares {
		d.LeaveToHost()
	}
	if err := m.sync(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	err := vm.Kill()
	m.guest.Fail(remote.ErrClosed)
	if m.o.FatalOops && err == nil {
		return m.lastOops(ctx, vm)
	}
	return err
}

// sync has the guest write what is not written. Who dies of an oops gives back none of its
// locks, so a kernel that has oopsed is not waited for as long as one that may be busy.
func (m *Machine) sync(ctx context.Context) error {
	if !m.console.oopsed() {
		return m.guest.Sync(ctx)
	}
	bounded, cancel := context.WithTimeout(ctx, oopsedBound)
	defer cancel()
	err := m.guest.Sync(bounded)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the guest's kernel has oopsed, and does not answer: %w", err)
	}
	return err
}

// oopsedBound is how long a kernel that has oopsed may take to write what is not written.
const oopsedBound = 10 * time.Second

// lastOops is the fatal oops of a guest that was shut down before its grace was over, if
// there was one, and the guest's failure from here on. It waits until all of the console
// was seen.
func (m *Machine) lastOops(ctx context.Context, vm *vmm.Machine) error {
	if _, err := vm.Wait(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.oops == nil {
		return nil
	}
	if m.why == nil {
		m.oops.Console = deathScreen(vm.ConsoleTail())
		m.why = m.oops
	}
	return m.why
}

// Close ends the guest as it is, and gives everything back.
func (m *Machine) Close() error {
	m.close.Do(func() {
		m.mu.Lock()
		m.closing = true
		vm := m.vm
		m.mu.Unlock()
		close(m.quit)
		if vm != nil {
			m.closeErr = vm.Close()
		}
		m.watching.Wait()
		m.closeErr = errors.Join(m.closeErr, m.guest.Close())
		m.release()
	})
	return m.closeErr
}

// release closes what is open and nobody's.
func (m *Machine) release() {
	m.closeImages()
	for _, d := range m.devices {
		if c, ok := d.(io.Closer); ok {
			_ = c.Close()
		}
	}
	m.devices = nil
}

func (m *Machine) closeImages() {
	for _, c := range m.archive.closers {
		_ = c.Close()
	}
	m.archive.closers, m.archive.images = nil, nil
}

// fail notes why the guest can serve no command any more, once, and ends the machine. What
// follows a fatal oops, as the panic of a kernel that does not go on after one, is the
// oops's.
func (m *Machine) fail(f *Failure) {
	m.mu.Lock()
	vm := m.vm
	first := m.why == nil && !m.closing
	if first {
		if oops := m.oops; oops != nil && oops != f {
			oops.Exit, oops.Console = f.Exit, f.Console
			f = oops
		}
		m.why = f
	}
	m.mu.Unlock()
	if !first {
		return
	}
	if f.Console == nil && vm != nil {
		f.Console = deathScreen(vm.ConsoleTail())
	}
	m.guest.Fail(f)
	if vm != nil {
		_ = vm.Kill()
	}
}

// oopsed is called with the line of the kernel's first oops.
func (m *Machine) oopsed(line string) {
	if !m.o.FatalOops {
		if m.o.Oopsed != nil {
			m.o.Oopsed(line)
			return
		}
		m.o.Logger.Warn("the guest's kernel oopsed", "line", line)
		return
	}
	f := &Failure{Kind: Oops, Text: "the guest's kernel oopsed: " + line}
	m.mu.Lock()
	m.oops = f
	m.mu.Unlock()
	// What else the kernel has to say about it is worth waiting for, in a goroutine: this
	// one writes it.
	m.watching.Go(func() {
		select {
		case <-time.After(oopsGrace):
		case <-m.quit:
		case <-m.VM().Done():
		}
		m.fail(f)
	})
}

// oopsGrace is how long a guest may go on after a fatal oops, to print its trace.
const oopsGrace = 500 * time.Millisecond
