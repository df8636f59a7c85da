package vmtest_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vole-vmm/vole/vmm/vmtest"
)

// All tests of the package run in a guest, as root there.
func ExampleMain() {
	// In a file of tests this is
	//
	//	func TestMain(m *testing.M) { ... }
	_ = func(m *testing.M) {
		vmtest.Main(m, vmtest.Kernel("6.12"), vmtest.Memory(2<<30), vmtest.AsRoot())
	}
}

// A test that boots a machine of its own, runs commands in it and looks at its console.
func ExampleStart() {
	_ = func(m *testing.M) { // TestMain
		vmtest.Init()
		os.Exit(m.Run())
	}
	_ = func(t *testing.T) { // TestLoop
		vm := vmtest.Start(t, vmtest.Modules("loop"), vmtest.Append("loglevel=7"))
		vm.WriteFile("/tmp/disk", make([]byte, 1<<20), 0o600)
		device := strings.TrimSpace(vm.Output("losetup", "--find", "--show", "/tmp/disk"))

		cmd := vm.Command("mkfs.ext4", device) // as exec.Command
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		vm.Output("mount", device, "/mnt")
		vm.Expect(`EXT4-fs \(loop\d+\): mounted filesystem`)
	}
}

// A machine with an initrd of its own, which is spoken to by its console.
func ExampleInitrd() {
	_ = func(t *testing.T) {
		vm := vmtest.Start(t, vmtest.Kernel("./bzImage"), vmtest.Initrd("initrd.img"), vmtest.Patience(5*time.Minute))
		vm.Expect(`login: `)
		vm.Send("root\n")
		vm.Expect(`# $`)
		vm.Send("poweroff\n")
		if exit := vm.Wait(); exit.Err != nil {
			t.Error(exit)
		}
	}
}

// The same test on each of several kernels, at the same time.
func ExampleEach() {
	_ = func(t *testing.T) {
		vmtest.Each(t, []string{"6.1", "6.12", "./linux/arch/x86/boot/bzImage"}, func(t *testing.T, kernel string) {
			t.Parallel()
			vm := vmtest.Start(t, vmtest.Kernel(kernel))
			t.Log(vm.Release())
		})
	}
}
