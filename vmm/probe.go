package vmm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/kvm"
	"github.com/vole-vmm/vole/memory"
)

// KVMDevice is the device that machines are made with.
const KVMDevice = "/dev/kvm"

// Virtualization is what a host's KVM stands on.
type Virtualization string

const (
	// VMX is Intel's.
	VMX Virtualization = "vmx"
	// SVM is AMD's.
	SVM Virtualization = "svm"
	// NoVirtualization: the processor shows neither. Where /dev/kvm answers
	// nevertheless it is a paravirtual one (PVM), in which a stock kernel does
	// not reach user space.
	NoVirtualization Virtualization = "none"
)

// HostInfo is what Probe finds out about a host.
type HostInfo struct {
	Virtualization Virtualization `json:"virtualization"`
	// InVM: this host is a virtual machine itself; vole's are nested.
	InVM bool `json:"in_vm"`
	// Missing names the capabilities that every machine needs and this KVM
	// lacks.
	Missing []string `json:"missing,omitempty"`
	// MaxCPUs is how many vCPUs KVM gives one machine.
	MaxCPUs int `json:"max_cpus"`
	// InstructionRate is how many instructions of its kernel mode a guest
	// executes in a second, measured with a loop of a few thousand.
	InstructionRate float64 `json:"instruction_rate"`
}

// minInstructionRate tells a processor from an emulator of one, in
// instructions a second: the one executes hundreds of millions, the other
// (KVM's own, on PVM) one or two. A software-emulated host lies between.
const minInstructionRate = 8e6

// CanBootStock reports whether an unmodified distribution kernel can be
// expected to boot on this host.
func (h HostInfo) CanBootStock() bool {
	return h.Virtualization != NoVirtualization && len(h.Missing) == 0 && h.InstructionRate >= minInstructionRate
}

// CPUVirtualization reads from /proc/cpuinfo what the processor offers a
// hypervisor, and whether it is itself virtual.
func CPUVirtualization() (v Virtualization, inVM bool, err error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return NoVirtualization, false, fmt.Errorf("vmm: %w", err)
	}
	defer f.Close()
	v, inVM, err = cpuFlags(f)
	if err != nil {
		err = fmt.Errorf("vmm: /proc/cpuinfo: %w", err)
	}
	return v, inVM, err
}

func cpuFlags(r io.Reader) (v Virtualization, inVM bool, err error) {
	v = NoVirtualization
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		flags := strings.Fields(value)
		switch {
		case slices.Contains(flags, "vmx"):
			v = VMX
		case slices.Contains(flags, "svm"):
			v = SVM
		}
		return v, slices.Contains(flags, "hypervisor"), nil
	}
	return v, false, lines.Err()
}

// Probe asks KVM what it can do, by running a tiny guest on it; that takes
// milliseconds, and no longer than ctx. The error says why /dev/kvm can't be used: it wraps
// fs.ErrNotExist, fs.ErrPermission, kvm's sentinels, or what the tiny guest
// failed with. What was found out up to there is returned with it.
func Probe(ctx context.Context) (HostInfo, error) {
	var info HostInfo
	var err error
	info.Virtualization, info.InVM, err = CPUVirtualization()
	if err != nil {
		return info, err
	}
	sys, err := kvm.Open(KVMDevice)
	if err != nil {
		return info, fmt.Errorf("%w: %w", ErrKVM, err)
	}
	defer sys.Close()
	for _, c := range requiredCaps {
		if n, err := sys.Check(c); err != nil || n <= 0 {
			info.Missing = append(info.Missing, c.String())
		}
	}
	info.MaxCPUs, _ = sys.Check(kvm.CapMaxVCPUs)
	info.InstructionRate, err = instructionRate(ctx, sys, probeCode)
	if err != nil {
		return info, fmt.Errorf("%w: the test guest: %w", ErrKVM, err)
	}
	return info, nil
}

// A loop of 16-bit code at probeAddr: count CX down from its value, then write
// to the debug exit port.
const (
	probeAddr  = 0x1000
	probeLoops = 3000
	probeRuns  = 3
)

var probeCode = []byte{
	0x49,       // dec cx
	0x75, 0xfd, // jnz to the dec
	0xe6, debugExitPort, // out 0xf4, al
	0xf4, // hlt
}

// instructionRate runs code, which holds the loop, a few times and takes the
// best.
func instructionRate(ctx context.Context, sys *kvm.System, code []byte) (rate float64, err error) {
	mem, err := memory.New(memory.Config{Size: 4 * memory.PageSize, Backing: memory.Anonymous, Name: "vole-probe"})
	if err != nil {
		return 0, err
	}
	vm, err := sys.CreateVM()
	if err != nil {
		return 0, errors.Join(err, mem.Close())
	}
	defer func() { err = errors.Join(err, vm.Close(), mem.Close()) }()
	if _, err := mem.WriteAt(code, probeAddr); err != nil {
		return 0, err
	}
	r := mem.Regions()[0]
	err = errors.Join(
		vm.SetTSSAddress(tssBase),
		vm.SetMemoryRegion(kvm.MemoryRegion{GPA: r.GPA, Size: r.Size(), HVA: r.HostAddress()}),
	)
	if err != nil {
		return 0, err
	}
	c, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	defer kickAtEnd(ctx, c)() // before the vCPU's run page is unmapped
	for range probeRuns {
		took, err := probeOnce(ctx, c)
		if err != nil {
			return 0, err
		}
		rate = max(rate, float64(2*probeLoops)/took.Seconds())
	}
	return rate, nil
}

// kickAtEnd makes the vCPU, which the calling thread runs from now on, leave the
// guest when ctx ends. The caller calls stop, from the same goroutine.
func kickAtEnd(ctx context.Context, c *kvm.VCPU) (stop func()) {
	runtime.LockOSThread()
	tid := unix.Gettid()
	kicked := make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(kicked)
		kickThread(c, tid)
	})
	return func() {
		if !forget() {
			<-kicked
		}
		runtime.UnlockOSThread()
	}
}

func probeOnce(ctx context.Context, c *kvm.VCPU) (time.Duration, error) {
	s, err := c.Sregs()
	if err != nil {
		return 0, err
	}
	s.CS.Base, s.CS.Selector = 0, 0
	if err := c.SetSregs(&s); err != nil {
		return 0, err
	}
	if err := c.SetRegs(&kvm.Regs{RIP: probeAddr, RCX: probeLoops, RFLAGS: rflagsReserved}); err != nil {
		return 0, err
	}
	begin := time.Now()
	for ctx.Err() == nil {
		reason, err := c.Run()
		switch {
		case err != nil:
			return 0, err
		case reason == kvm.ReasonIO:
			return time.Since(begin), nil
		case reason != kvm.ReasonInterrupted && reason != kvm.ReasonAgain:
			return 0, fmt.Errorf("it ended with %v", reason)
		}
	}
	return 0, ctx.Err()
}
