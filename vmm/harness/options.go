package harness

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio/fs/hostdir"
	"github.com/vole-vmm/vole/vmm"
)

const (
	// DefaultCmdline is the kernel command line of a Machine: that of vmm, as little
	// on the console as a kernel does by itself, since the console is only looked at
	// when something fails, and the time before each line, by which the kernel's
	// lines are told from those of programs. The kernel's self-tests of its
	// cryptography, a tenth of the time to a command, are left out; a later
	// cryptomgr.notests=0 has them.
	DefaultCmdline = vmm.DefaultCmdline + " quiet printk.time=1 cryptomgr.notests"
	// DefaultBootBound is how long a guest may take until its agent is ready.
	DefaultBootBound = 2 * time.Minute
	// DefaultSilence is how long an agent may leave a question unanswered.
	DefaultSilence = time.Minute
	// RootTag is the tag of the root's virtio file system.
	RootTag = "vole-root"
	// dirTag begins the tags of directories that are shared beside the root.
	dirTag = "vole-dir-"
)

// ReservedTag says whether a share can't have this tag, since a Machine has devices with
// such tags itself.
func ReservedTag(tag string) bool { return tag == RootTag || strings.HasPrefix(tag, dirTag) }

// ErrOptions is wrapped by errors about Options that no machine can be made of.
var ErrOptions = errors.New("harness: bad options")

// ErrNoDriver is wrapped by errors about a kernel that can't be used for a Machine: it
// has no driver, built in or as a module, for a device that the guest is given, as one
// without virtio. They wrap ErrOptions, too.
var ErrNoDriver = errors.New("the guest's kernel lacks a driver that it needs")

// refusal is an error about Options, which says itself what it is about.
type refusal struct{ err error }

func (e *refusal) Error() string   { return e.err.Error() }
func (e *refusal) Unwrap() []error { return []error{ErrOptions, e.err} }

func refuse(format string, args ...any) error { return &refusal{fmt.Errorf(format, args...)} }

// Options describe a Machine. The zero value of every field but Machine.Kernel is a
// good default.
type Options struct {
	// Machine is the machine itself. Its Initrd, Initrds and ConsoleOut are not for the
	// caller, and nobody but a command reads ConsoleIn in the guest; an empty Cmdline is DefaultCmdline. The devices belong to the
	// Machine from New on, also if that fails.
	Machine vmm.Config
	// ModulesDir has the kernel's modules (lib/modules/RELEASE); "" looks for it as
	// kernel.ModulesFor does, and goes on without if there is none: all may be built
	// in.
	ModulesDir string
	// Modules are names of modules to load besides those that the machine needs.
	Modules []string
	// ModulesCache is a directory for archives of modules; "" is none.
	ModulesCache string
	// Init is the executable that becomes /init; "" is the running program. Its main
	// calls guest.IsInit and guest.Main first.
	Init string

	// Root is the host's directory tree for the guest; nil is Root{}.
	Root *Root
	// Shares are mounted in the guest after the root. Their devices are in
	// Machine.Devices.
	Shares []wire.Mount
	// CID is the guest's context id, by which its programs know it; 0 is 3. It means
	// nothing on the host.
	CID uint32
	// Hostname is the guest's; Net the address of its first network device.
	Hostname string
	Net      *wire.Net
	// CorePattern is what a process that crashes leaves its memory by, as core(5) says;
	// "" is that none leaves any. CorePattern, the function, is a default.
	CorePattern string

	// BootBound is how long the guest may take until its agent is ready; 0 is
	// DefaultBootBound.
	BootBound time.Duration
	// Silence is how long the agent may leave a question unanswered, which is asked
	// now and then; 0 is DefaultSilence, less than 0 never asks.
	Silence time.Duration
	// Hang ends a guest of which nothing has come for as long: no byte on its console,
	// none of a command (Machine.Await). 0 is never. It counts from when the agent
	// is ready.
	Hang time.Duration
	// FatalOops ends the guest at its kernel's first oops, which is seen if lines on
	// the console begin with their time (printk.time).
	FatalOops bool
	// Oopsed is told the line of the kernel's first oops if that is not fatal; it is
	// called on a vCPU's thread. nil logs it.
	Oopsed func(line string)

	// Console receives all that the guest writes to its console; nil is nothing. Its
	// first error ends that.
	Console io.Writer
	// Logger receives what an operator may want to know; nil is silent.
	Logger *slog.Logger
}

// ModulesCacheIn is the place for archives of modules in a cache of kernels.
func ModulesCacheIn(c *kernel.Cache) string { return filepath.Join(c.Dir(), "modules") }

// Root says which of the host's files the guest sees and may change.
type Root struct {
	// Dir is the directory that is the guest's root; "" is "/".
	Dir string
	// Writable are directories below Dir, or Dir itself, absolute paths on the host, in
	// which the guest's changes are the host's.
	Writable []string
	// Visible are directories below /run and /dev/shm, absolute paths on the host, that
	// the guest sees although it has these of its own; without Dir alone. Where they are
	// not below Writable it can't change them.
	Visible []string
	// Owner, if not nil, is whom the files of the user that vole runs as belong to in the
	// guest, as hostdir.Options.Owner says (OwnerFor).
	Owner *hostdir.Owner
	// None gives the guest no root but the initramfs: Init has to bring what it needs.
	None bool
}

// Hidden are the directories of a host's root that are the kernel's, and of which the
// guest has its own.
var Hidden = []string{"/proc", "/sys", "/dev"}

func (o Options) withDefaults() Options {
	if o.Machine.Cmdline == "" {
		o.Machine.Cmdline = DefaultCmdline
	}
	if o.CID == 0 {
		o.CID = defaultCID
	}
	if o.Init == "" {
		// Not os.Executable: this one is still there when the file has been replaced.
		o.Init = "/proc/self/exe"
	}
	if o.Root == nil {
		o.Root = &Root{}
	}
	if o.BootBound == 0 {
		o.BootBound = DefaultBootBound
	}
	if o.Silence == 0 {
		o.Silence = DefaultSilence
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Machine.Logger == nil {
		o.Machine.Logger = o.Logger
	}
	return o
}

func (o *Options) check() error {
	switch {
	case o.BootBound < 0:
		return refuse("the boot's bound of %v is negative", o.BootBound)
	case o.Hang < 0:
		return refuse("the bound of %v for a silent guest is negative", o.Hang)
	case o.Root.None && len(o.Root.Writable) > 0:
		return refuse("%s can't be writable without a root", o.Root.Writable[0])
	}
	for _, dir := range slices.Concat(o.Root.Writable, o.Root.Visible) {
		if !filepath.IsAbs(dir) {
			return refuse("%s is not an absolute path", dir)
		}
	}
	if slices.Contains(o.Modules, "") {
		return refuse("the name of a kernel module is empty")
	}
	for _, d := range o.Machine.Devices {
		if t, ok := d.(interface{ Tag() string }); ok && ReservedTag(t.Tag()) {
			return refuse("a share can't have the tag %s, which is vole's own", t.Tag())
		}
	}
	return nil
}
