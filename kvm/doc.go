// Package kvm is the Linux KVM ABI as typed handles: a System is /dev/kvm, a VM
// is one virtual machine, a VCPU one virtual CPU with its mapped run page.
//
// It follows Documentation/virt/kvm/api.rst of the kernel; constants and
// fields carry the names of linux/kvm.h and asm/kvm.h in Go spelling, and each
// struct that says it mirrors a kernel struct has that struct's exact layout.
// The package decides nothing: no default CPUID, no address map, no order of
// calls. It leaves out SMM, nested state, the dirty ring, guest memfd, SEV and
// the device API, for which vole has no use.
//
// # Ownership
//
// Every handle owns its file descriptor, which is close-on-exec, and must be
// closed by the caller; nothing is closed by the garbage collector. A VM may
// outlive its System and a VCPU its VM. The kernel frees a machine when the VM
// and all of its VCPUs are closed. Guest memory belongs to the caller and must
// stay mapped until then.
//
// # Concurrency
//
// System and VM methods may be called from any goroutine at the same time,
// Close excepted. Those of a VCPU belong to one goroutine, locked to its
// thread, with two exceptions: SetImmediateExit may be called at any time
// from anywhere, also during and after Close, and Close called during Run
// refuses with ErrBusy.
//
// # Errors
//
// An error that comes from an ioctl names the ioctl and wraps the errno, so
// that errors.Is(err, unix.ENOMEM) and errors.Is(err, fs.ErrPermission) work.
// Where it failed because this kernel lacks the feature, it is a
// *MissingError, which names the capability. A signal that interrupts an
// ioctl other than KVM_RUN restarts it: the Go runtime sends signals to its own
// threads at any time.
package kvm
