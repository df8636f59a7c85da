package vmtest

import (
	"errors"
	"fmt"
	"os"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/vmm"
)

// Names of environment variables.
const (
	envWithoutKVM = "VOLE_WITHOUT_KVM"
	envKernel     = "VOLE_KERNEL"
	envKernels    = "VOLE_KERNELS"
	envCI         = "CI"
	// envInside is set for the tests that Main runs in a guest.
	envInside = "VOLE_VMTEST_INSIDE"
)

// Policy says what becomes of tests that need a guest where none can run.
type Policy string

// The policies.
const (
	Skip Policy = "skip"
	Fail Policy = "fail"
)

// WithoutKVM says what becomes of tests where no guest can run. VOLE_WITHOUT_KVM comes
// before it; without both they fail in CI and are skipped elsewhere.
func WithoutKVM(p Policy) Option { return func(c *config) { c.policy = p } }

// errUnusable is wrapped by the reasons why no guest can run here.
var errUnusable = errors.New("no guest can run here")

// pvm is why a paravirtual KVM is none.
const pvm = "the processor has neither VMX nor SVM: " + vmm.KVMDevice + " is a paravirtual one (PVM), in which no stock kernel reaches user space"

// newConfig collects the options.
func newConfig(opts []Option) *config {
	c := &config{getenv: os.Getenv, self: func() bool { return handsOver.Load() }}
	c.kvm = func() error { return usableKVM(c.anyKVM) }
	for _, o := range opts {
		o(c)
	}
	return c
}

// usableKVM says why the KVM of this machine can't run a guest, nil if it may.
func usableKVM(anyKVM bool) error {
	f, err := os.OpenFile(vmm.KVMDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = f.Close()
	if anyKVM {
		return nil
	}
	// Where this can't be found out, the guest will show it.
	if v, _, err := vmm.CPUVirtualization(); err == nil && v == vmm.NoVirtualization {
		return errors.New(pvm)
	}
	return nil
}

// usable makes sure that a guest can run here and finds its kernel. The error wraps
// errUnusable if this machine is to blame; otherwise it is a mistake in the options.
func (c *config) usable() error {
	m := &c.harness.Machine
	if err := c.kvm(); err != nil {
		return fmt.Errorf("%w: %w", errUnusable, err)
	}
	if m.Kernel != "" || m.KernelImage != nil {
		return nil // Configure has named it
	}
	var err error
	m.Kernel, err = c.findKernel()
	if errors.Is(err, kernel.ErrNoKernel) {
		return fmt.Errorf("%w: %w (%s or the option Kernel names one)", errUnusable, err, envKernel)
	}
	return err
}

// findKernel is the path of the kernel that was asked for.
func (c *config) findKernel() (string, error) {
	name := c.kernel
	if name == "" {
		name = c.getenv(envKernel)
	}
	return oneKernel(kernel.Finder{}, name)
}

// skips says whether tests for which no guest can run are skipped. The error is that the
// environment variable makes no sense.
func (c *config) skips() (bool, error) {
	p := c.policy
	if env := c.getenv(envWithoutKVM); env != "" {
		p = Policy(env)
	}
	switch p {
	case Skip:
		return true, nil
	case Fail:
		return false, nil
	case "":
		ci := c.getenv(envCI)
		return ci == "" || ci == "0" || ci == "false", nil
	}
	return false, fmt.Errorf("what to do without KVM, %q, is neither %s nor %s (%s, or the option WithoutKVM)", p, Skip, Fail, envWithoutKVM)
}

// cache is the cache of unpacked kernels, nil where there can be none.
func (c *config) cache() *kernel.Cache {
	cache, err := kernel.NewCache("")
	if err != nil {
		return nil
	}
	return cache
}

// canBeAgent says why the running program can't be PID 1 of a guest.
func (c *config) canBeAgent() error {
	if c.harness.Init != "" || c.self() {
		return nil
	}
	return errors.New("this test binary can't be PID 1 of a guest, since its TestMain does not call vmtest.Init: " +
		"func TestMain(m *testing.M) { vmtest.Init(); os.Exit(m.Run()) }")
}
