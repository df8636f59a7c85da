// Package nested is the place where vole's guest tests run.
//
// A test of the machine monitor needs a /dev/kvm that boots a stock kernel.
// Where the machine has one (VMX or SVM), the tests run on it as they are.
// Where it has none, [Main] boots an emulated host: QEMU in pure software
// emulation (TCG), which emulates AMD SVM, a Debian kernel with its own
// kvm-amd module, and an initramfs whose /init is the test binary itself. In
// there the same test binary runs again, and what it prints, the files that it
// leaves and its exit code come back, so that to `go test` nothing differs.
//
//	func TestMain(m *testing.M) {
//		nested.Main(m, nested.Options{Assets: []string{nested.AssetVole, nested.KernelCloud61}})
//	}
//
// Files keep their absolute path: whatever is brought into the emulated host
// stands at the path that it has outside, so a path in a flag, in the
// environment or from [Asset] means the same in both places.
//
// A test that fails in the emulated host has failed, as on a real /dev/kvm.
// Only when that host itself fails ([ErrHost]: it locks up, falls silent, or QEMU
// ends) do the tests that have not ended run again, in a fresh one, and lines
// that begin with "nested: rerun: " at the end of the output tell of it.
//
// Kernels, QEMU and the rest come from Debian packages that the program in
// fetch ("make deps") unpacks into a cache directory outside the repository;
// see [CacheDir]. The program in run boots the emulated host for one command.
//
// Environment:
//
//	VOLE_NESTED       auto (default), always or never: whether to use the emulated host
//	VOLE_TEST_CACHE   the cache directory
//	VOLE_BIN          the vole binary under test; built when it is not set
//	VOLE_NESTED_LOG   a file that receives the emulated host's kernel console
//	VOLE_NESTED_APPEND  more words for the emulated host's kernel command line
//
// The package leaves out everything about vole itself: it is a test rig, it is
// imported by tests only, and nothing that is shipped links it.
package nested
