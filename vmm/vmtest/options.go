package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio"
	virtiofs "github.com/vole-vmm/vole/virtio/fs"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
)

const (
	// DefaultMemory is the RAM of a machine with an agent, in bytes: room for the
	// tests of most packages. The host gives what the guest touches.
	DefaultMemory = 1 << 30
	// DefaultPatience is how long Expect, Dial and DialTCP wait.
	DefaultPatience = time.Minute
)

// Option is a choice about the machine of [Main] or [Start]. Of options of one kind the
// last counts, unless they add up. Mistakes in them end the test, or the test binary.
type Option func(*config)

// Dialer connects to a port in the guest: a *usernet.Network is one.
type Dialer interface {
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// config is what options make.
type config struct {
	harness  harness.Options
	kernel   string
	append   []string
	shares   []share
	console  []io.Writer
	dialer   Dialer
	noAgent  bool
	anyKVM   bool
	logAll   bool
	asRoot   bool
	coreSet  bool
	policy   Policy
	patience time.Duration
	finish   []func(*harness.Options)

	// What tests put others in place of.
	getenv func(string) string
	kvm    func() error
	self   func() bool // the running program can be the agent
}

// share is a directory of the host for the guest.
type share struct {
	dir, at  string
	readOnly bool
}

// Kernel is the kernel to boot: a file, if there is a slash in it; else a kernel of this
// machine, by its version, the beginning of one ("6.12") or the name of the directory that
// it was pulled to. Without it the kernel is that of VOLE_KERNEL, else the one that `vole
// run` boots.
func Kernel(name string) Option { return func(c *config) { c.kernel = name } }

// Memory is the RAM in bytes, a multiple of 4096.
func Memory(bytes uint64) Option { return func(c *config) { c.harness.Machine.Memory = bytes } }

// CPUs is the number of vCPUs; one if nothing is said.
func CPUs(n int) Option { return func(c *config) { c.harness.Machine.CPUs = n } }

// Cmdline is the whole kernel command line. Without it it is harness.DefaultCmdline, or
// vmm.DefaultCmdline for a machine without an agent.
func Cmdline(line string) Option { return func(c *config) { c.harness.Machine.Cmdline = line } }

// Append puts words behind the kernel command line. It adds up.
func Append(words ...string) Option {
	return func(c *config) { c.append = append(c.append, words...) }
}

// NoAgent boots a machine with nothing but what the test gives it: no initial RAM disk
// and no devices of vmtest's. Methods that need an agent then end the test.
func NoAgent() Option { return func(c *config) { c.noAgent = true } }

// Initrd is an initial RAM disk, with an /init of its own: there is no agent.
func Initrd(path string) Option {
	return func(c *config) { c.noAgent, c.harness.Machine.Initrd = true, path }
}

// Device gives the machine virtio devices, disks for example. They are the machine's from
// Start on, which closes them, also where it ends the test. The drivers are loaded. It
// adds up.
func Device(d ...virtio.Device) Option {
	return func(c *config) { c.harness.Machine.Devices = append(c.harness.Machine.Devices, d...) }
}

// Net gives the machine a network device, the agent the address that it sets up there, and
// [VM.DialTCP] the way to reach it; d may be nil. The address of a default usernet.Network
// is [UserNet].
func Net(device virtio.Device, address wire.Net, d Dialer) Option {
	return func(c *config) {
		c.harness.Machine.Devices = append(c.harness.Machine.Devices, device)
		c.harness.Net, c.dialer = &address, d
	}
}

// UserNet is the guest's address in a network of package usernet with default options.
func UserNet() wire.Net {
	return *harness.UserNet()
}

// Share mounts a directory of this host in the guest: what the guest changes below it is
// changed here. It adds up. The mount point is made if it isn't there, but in no directory of
// this host's; a share that can't be mounted is an error of commands, and of Start.
func Share(dir, at string) Option {
	return func(c *config) { c.shares = append(c.shares, share{dir: dir, at: at}) }
}

// ShareReadOnly is Share without the changes.
func ShareReadOnly(dir, at string) Option {
	return func(c *config) { c.shares = append(c.shares, share{dir, at, true}) }
}

// Writable names directories of this host whose changes in the guest are made here: the
// guest's other changes vanish with it. It adds up. Of Main's machine those that `go test`
// wants something back from always are, but not the user's home or what contains it. One
// that can't be made writable in the guest is an error of its commands, and of Start.
func Writable(dirs ...string) Option {
	return func(c *config) {
		r := c.root()
		r.Writable = append(r.Writable, dirs...)
	}
}

// Root is the directory of this host that is the guest's root, "/" if nothing is said. The
// tests of Main need the latter.
func Root(dir string) Option { return func(c *config) { c.root().Dir = dir } }

// NoRoot gives the guest nothing of this host: only the initial RAM disk with the test
// binary, which can be run there as /init. The tests of Main need a root.
func NoRoot() Option { return func(c *config) { c.root().None = true } }

// Modules are kernel modules to load, besides those that the machine needs. It adds up.
func Modules(names ...string) Option {
	return func(c *config) { c.harness.Modules = append(c.harness.Modules, names...) }
}

// CorePattern is where processes in the guest that crash leave their memory, as
// /proc/sys/kernel/core_pattern takes it (core(5)), and lifts the limit of its size: "" is
// nowhere. It is kept where the guest's writes are, below Writable. If nothing is said Main
// does as `ulimit -c` says here, with "core.%e.%p", and machines of Start leave none.
func CorePattern(pattern string) Option {
	return func(c *config) { c.harness.CorePattern, c.coreSet = pattern, true }
}

// Timeout ends the machine that long after its start.
func Timeout(d time.Duration) Option { return func(c *config) { c.harness.Machine.Timeout = d } }

// BootTimeout is how long the guest may take until its agent is there;
// harness.DefaultBootBound if nothing is said.
func BootTimeout(d time.Duration) Option { return func(c *config) { c.harness.BootBound = d } }

// Patience is how long Expect, Dial and DialTCP wait instead of DefaultPatience.
func Patience(d time.Duration) Option { return func(c *config) { c.patience = d } }

// FatalOops ends the guest at its kernel's first oops.
func FatalOops() Option { return func(c *config) { c.harness.FatalOops = true } }

// Console has everything that the guest writes to its console written to w, as it comes
// and by one goroutine at a time. The first error ends that. It adds up.
func Console(w io.Writer) Option { return func(c *config) { c.console = append(c.console, w) } }

// LogConsole puts the whole console into the test's log, line by line as it comes. Main
// writes it to stderr.
func LogConsole() Option { return func(c *config) { c.logAll = true } }

// AsRoot has Main run the tests as root in the guest, whoever runs them here.
func AsRoot() Option { return func(c *config) { c.asRoot = true } }

// AnyKVM is for kernels that are no stock ones, and boot by a KVM that those do not boot by.
func AnyKVM() Option { return func(c *config) { c.anyKVM = true } }

// Agent is an executable that becomes PID 1 of the guest instead of the running test
// binary, such as vole itself.
func Agent(exe string) Option { return func(c *config) { c.harness.Init = exe } }

// Configure has f change what no other option does, when all others have done their
// work. Of a machine without an agent only Options.Machine counts. It adds up.
func Configure(f func(*harness.Options)) Option {
	return func(c *config) { c.finish = append(c.finish, f) }
}

func (c *config) root() *harness.Root {
	if c.harness.Root == nil {
		c.harness.Root = &harness.Root{}
	}
	return c.harness.Root
}

// complete makes of the options what a machine is made of, but for the kernel and the
// shares, which may have to be given back.
func (c *config) complete() error {
	m := &c.harness.Machine
	if m.Cmdline == "" {
		m.Cmdline = harness.DefaultCmdline
		if c.noAgent {
			m.Cmdline = vmm.DefaultCmdline
		}
	}
	m.Cmdline = strings.Join(append([]string{m.Cmdline}, c.append...), " ")
	if m.Memory == 0 && !c.noAgent {
		m.Memory = DefaultMemory
	}
	if c.patience == 0 {
		c.patience = DefaultPatience
	}
	if c.noAgent {
		return c.withoutAgent()
	}
	dirs, err := realDirs(c.root().Writable)
	if err != nil {
		return err
	}
	c.root().Writable = dirs
	return nil
}

// withoutAgent refuses what only an agent can do.
func (c *config) withoutAgent() error {
	switch h := &c.harness; {
	case len(c.shares) > 0:
		return fmt.Errorf("the share of %s can't be mounted without an agent", c.shares[0].dir)
	case h.Root != nil:
		return errors.New("a machine without an agent has no root of this host")
	case len(h.Modules) > 0:
		return fmt.Errorf("the module %s can't be loaded without an agent", h.Modules[0])
	case h.Init != "":
		return fmt.Errorf("%s can't be the agent of a machine without one", h.Init)
	}
	return nil
}

// realDirs are the directories without links, since a guest sees what a name leads to,
// and without those that are below others.
func realDirs(dirs []string) ([]string, error) {
	var all []string
	for _, d := range dirs {
		abs, err := realDir(d)
		if err != nil {
			return nil, fmt.Errorf("%s is to be writable: %w", d, err)
		}
		all = append(all, abs)
	}
	return harness.Outermost(all), nil
}

func realDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	abs, err = filepath.EvalSymlinks(abs)
	var path *fs.PathError
	if errors.As(err, &path) {
		return "", path.Err
	}
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return "", syscall.ENOTDIR
	}
	return abs, nil
}

// openShares makes the devices of the shares.
func (c *config) openShares() error {
	for i, s := range c.shares {
		tag := fmt.Sprintf("vole-share-%d", i)
		dir, err := hostdir.New(hostdir.Options{Dir: s.dir, ReadOnly: s.readOnly, Xattr: true, Logger: c.harness.Logger})
		if err != nil {
			return fmt.Errorf("share %s: %w", s.dir, err)
		}
		// A failing New closes dir.
		device, err := virtiofs.New(dir, virtiofs.Options{Tag: tag, Queues: max(c.harness.Machine.CPUs, 1), Logger: c.harness.Logger})
		if err != nil {
			return fmt.Errorf("share %s: %w", s.dir, err)
		}
		c.harness.Machine.Devices = append(c.harness.Machine.Devices, device)
		c.harness.Shares = append(c.harness.Shares, wire.Mount{Tag: tag, Dir: wire.Text(s.at), ReadOnly: s.readOnly})
	}
	return nil
}

// closeDevices closes devices that no machine owns.
func (c *config) closeDevices() {
	for _, d := range c.harness.Machine.Devices {
		if closer, ok := d.(io.Closer); ok {
			_ = closer.Close()
		}
	}
	c.harness.Machine.Devices = nil
}
