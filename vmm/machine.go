package vmm

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/devices/pci"
	"github.com/vole-vmm/vole/kvm"
	"github.com/vole-vmm/vole/memory"
)

// Machine is one virtual machine. All of its methods may be called from any
// goroutine.
type Machine struct {
	cfg Config
	log *slog.Logger

	mem   *memory.Guest
	vm    *kvm.VM
	vcpus []*vcpu
	lines []*irqLine

	ports  *devices.Bus
	mmio   *devices.Bus
	serial *devices.Serial
	power  *devices.Power
	virtio []plugged
	// consoles are those of the virtio devices that carry one.
	consoles []ConsoleDevice
	bridge   *pci.Host // nil without devices on PCI
	router   *msiRouter
	// window64 is the bridge's; bellLength the width of write that KVM takes for
	// a doorbell, 0 for any.
	window64   pci.Range
	bellLength uint32
	collector  collector
	inquiry    atomic.Uint64 // whether the guest is dead: see dead.go
	// patience is drainPatience, but for tests. It is not changed once anything
	// waits.
	patience time.Duration
	// stillness is the constant of that name, but for tests. It is not changed
	// after Start.
	stillness time.Duration
	console   *consoleWatch

	entry boot.Entry
	info  BootInfo
	times timeline

	// gate is what vCPUs look at between two entries into the guest. It is
	// changed under mu.
	gate atomic.Uint32

	mu     sync.Mutex
	cond   sync.Cond // on mu: gate or parked changed
	state  state
	parked int  // vCPUs that stand still in hold
	left   int  // vCPU threads that have not returned
	exit   Exit // valid once ended is closed

	ended  chan struct{} // closed under mu: exit is known, vCPUs stop
	hurry  chan struct{} // closed under mu: don't wait for the console
	hasty  bool          // hurry is closed
	deaths deathNote
	done   chan struct{} // closed when everything that Start began is joined

	// quiesce is held while the devices are paused or resumed, which mu is not.
	// It is taken before mu. stopPause ends a wait for them; it is guarded by mu.
	quiesce   sync.Mutex
	stopPause context.CancelFunc

	pressing sync.RWMutex // held for reading while the power button is pressed
	release  sync.Once
	freeErr  error
	// restless, if not nil, says that a device may still write to guest memory
	// and raise interrupts. It is written before free is called.
	restless error
}

// state is where the machine is in its life. It is guarded by Machine.mu.
type state int

const (
	created state = iota
	running
	paused
	stopping // exit is known, joining
	stopped
)

var stateNames = [...]string{"created", "running", "paused", "stopping", "stopped"}

func (s state) String() string { return stateNames[s] }

// Values of Machine.gate.
const (
	gateRun = iota
	gatePause
	gateStop
)

// New makes a machine: it opens the kernel and the initrd, maps the RAM,
// creates the VM with its vCPUs and devices, and loads what is to be booted.
// Nothing runs yet. The caller closes the machine, which closes the devices of
// cfg that can be closed; New does so itself when it fails.
//
// Errors wrap ErrConfig (nothing was created) or ErrKVM where that is the
// reason; memory.ErrNoMemory where the host has too little.
func New(cfg Config) (*Machine, error) { return NewContext(context.Background(), cfg) }

// NewContext is New, except that the end of ctx also ends what may take long: with
// BootVMLinux the extraction of the kernel, for which another process may hold the
// cache's lock. ctx does not matter any more when NewContext has returned.
func NewContext(ctx context.Context, cfg Config) (*Machine, error) {
	now := time.Now()
	cfg = cfg.withDefaults()
	if cfg.Epoch.IsZero() {
		cfg.Epoch = now
	}
	if err := cfg.validatePlain(); err != nil {
		return nil, errors.Join(err, closeAll(cfg.Devices))
	}
	m, err := newMachine(ctx, cfg)
	var s *surprise
	if cfg.Boot == BootAuto && errors.As(err, &s) {
		cfg.Logger.Info("booting the bzImage as it is", "kernel", cfg.Kernel, "reason", s.err)
		cfg.Boot = BootBzImage
		m, err = newMachine(ctx, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, closeAll(cfg.Devices))
	}
	m.times.mark(MarkCreated)
	return m, nil
}

// newMachine makes a machine of a Config that is complete.
func newMachine(ctx context.Context, cfg Config) (*Machine, error) {
	m := &Machine{
		cfg:   cfg,
		log:   cfg.Logger,
		ended: make(chan struct{}),
		hurry: make(chan struct{}),
		done:  make(chan struct{}),

		patience:  drainPatience,
		stillness: stillness,
	}
	m.cond.L = &m.mu
	m.deaths.wake = make(chan struct{}, 1)
	m.collector.wake = make(chan struct{}, 1)
	m.times.epoch = cfg.Epoch
	if err := m.build(ctx); err != nil {
		return nil, errors.Join(err, m.free())
	}
	return m, nil
}

// build makes everything that free takes down.
func (m *Machine) build(ctx context.Context) error {
	images, err := m.cfg.openImages(ctx)
	if err != nil {
		return err
	}
	err = m.assemble(images)
	return errors.Join(err, images.close())
}

func (m *Machine) assemble(images *images) error {
	var err error
	m.mem, err = memory.New(memory.Config{Size: m.cfg.Memory, Backing: m.cfg.Backing, Huge: m.cfg.Huge})
	if err != nil {
		return err
	}
	host, err := openKVM()
	if err != nil {
		return err
	}
	defer host.close()
	if err := m.fitsAddress(host); err != nil {
		return err
	}
	m.arrange(host)
	if err := m.createVM(host); err != nil {
		return err
	}
	if err := m.plugDevices(); err != nil {
		return err
	}
	if err := m.load(images); err != nil {
		return err
	}
	return m.initVCPUs(host)
}

// load writes kernel, initrd and tables into guest memory.
func (m *Machine) load(k *images) error {
	tables, err := m.acpiTables()
	if err != nil {
		return err
	}
	k.params.ACPI = tables
	k.params.Reserved = []boot.Range{{GPA: identityBase, Size: reservedSize}}
	if m.bridge != nil {
		k.params.Reserved = append(k.params.Reserved, boot.Range{GPA: ecamBase, Size: m.bridge.ECAMSize()})
	}
	m.entry, err = boot.Load(m.mem, k.params)
	if err != nil && k.cached {
		return &surprise{refused(err)}
	}
	if err != nil {
		return refused(err)
	}
	m.info = BootInfo{
		Protocol: string(m.entry.Protocol),
		Kernel:   m.cfg.Kernel,
		Cached:   k.cached,
		Missed:   k.missed,
	}
	return nil
}

// free takes down what build has made. Nothing of it is in use any more.
func (m *Machine) free() error {
	m.release.Do(func() {
		m.pressing.Lock()
		defer m.pressing.Unlock()
		var errs []error
		if m.restless == nil { // it is known of a machine that ran
			m.restless = m.restDevices()
		}
		errs = append(errs, m.restless)
		for _, c := range m.vcpus {
			errs = append(errs, c.kvm.Close())
		}
		if m.serial != nil {
			errs = append(errs, m.serial.Close())
		}
		// What a device that is not at rest may still use is not given back: its
		// next interrupt would go to a descriptor that is somebody else's by then.
		if m.restless == nil {
			errs = append(errs, m.closeCards())
		}
		if m.vm != nil {
			errs = append(errs, m.vm.Close())
		}
		if m.restless == nil {
			errs = append(errs, m.closeLines())
			if m.mem != nil {
				errs = append(errs, m.mem.Close())
			}
		}
		m.freeErr = errors.Join(errs...)
	})
	return m.freeErr
}

// closeLines gives back the interrupts of the machine's own devices and of those
// on MMIO.
func (m *Machine) closeLines() error {
	var errs []error
	for _, l := range m.lines {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

// ConsoleTail returns the last that the guest wrote to its console, at most
// 64 KiB.
func (m *Machine) ConsoleTail() []byte { return m.console.last() }
