// Package vmtest runs tests in virtual machines of vole's, and virtual machines in
// tests.
//
// [Main], called by TestMain, has all tests of a package run inside a guest, as root or
// as the user that runs `go test`, over this host's files:
//
//	func TestMain(m *testing.M) { vmtest.Main(m, vmtest.Kernel("6.12")) }
//
// [Start] gives a single test, benchmark or fuzz test a machine, to run commands in, to
// watch the console of and to speak to. TestMain then calls [Init], since the test
// binary is also what runs in the guest as PID 1:
//
//	func TestMain(m *testing.M) { vmtest.Init(); os.Exit(m.Run()) }
//
//	func TestModule(t *testing.T) {
//		vm := vmtest.Start(t, vmtest.Memory(2<<30))
//		vm.Output("insmod", "hello.ko")
//	}
//
// A machine in which something else is PID 1 has no agent ([Initrd], [NoAgent]): it is
// watched and spoken to by its console. [Each] repeats a test for each of several
// kernels.
//
// # Endings
//
// Whatever a test waits for here ends with the test's own time (-timeout), a little
// earlier, so that the console is still in its log. A panic or hang of the guest ends the
// waits at once. A test that fails has the last of the console in its log, with -v all of
// it. A guest that panics, oopses (with [FatalOops]), hangs or ends without having been
// told to makes the test fail, unless the test shows that it knows, by [VM.Wait] or
// [VM.Failure]. All that Start made is gone when the test has ended: the machine is closed
// by the first of its clean-ups, so those of the test that are registered later still
// find it.
//
// # Where there is no KVM
//
// Where no guest can run (no /dev/kvm, no access to it, a paravirtual KVM that boots no
// stock kernel, no kernel on this machine where none was named) tests are skipped, with
// the reason, or fail: as [WithoutKVM] says, else they fail where the environment
// variable CI is set (to anything but 0 and false), and are skipped elsewhere.
//
// # Environment
//
//	VOLE_WITHOUT_KVM   skip or fail; before what WithoutKVM says
//	VOLE_KERNEL        the kernel where the test names none
//	VOLE_KERNELS       the kernels of Each, before those that the test names: a list
//	                   with spaces or commas
//	VOLE_CACHE         the cache of unpacked kernels and their modules, as everywhere
//	                   in vole
//
// # What is left out
//
// Disks and networks are devices that the test makes and hands over ([Device], [Net]):
// the package links neither. It fetches no kernels either: `vole kernel pull` does.
package vmtest
