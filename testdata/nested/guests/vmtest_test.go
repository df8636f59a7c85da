package guests

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/testdata/nested/stream"
	"github.com/vole-vmm/vole/virtio/block"
	virtionet "github.com/vole-vmm/vole/virtio/net"
	"github.com/vole-vmm/vole/virtio/net/usernet"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
	"github.com/vole-vmm/vole/vmm/vmtest"
)

// onKernel are the options of a machine with an agent in this rig.
func onKernel(t testing.TB, name string, more ...vmtest.Option) []vmtest.Option {
	t.Helper()
	path := asset(t, name)
	cache := cacheWith(t, path)
	return append([]vmtest.Option{
		vmtest.Kernel(path), vmtest.Patience(bootBound), vmtest.BootTimeout(bootBound),
		vmtest.Configure(func(o *harness.Options) { o.Machine.Cache = cache }),
	}, more...)
}

// TestVMTest: a machine in a test, from its first command to its clean-up. Its PID 1 is
// this test binary.
func TestVMTest(t *testing.T) {
	share, kept := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(share, "in"), []byte("from the host"), 0o644))
	t.Run("machine", func(t *testing.T) {
		disk, err := block.New(block.NewMemory(1<<20), block.Options{Serial: "vmtest"})
		require.NoError(t, err)
		network, err := usernet.New(usernet.Options{})
		require.NoError(t, err)
		nic, err := virtionet.New(network, virtionet.Options{})
		require.NoError(t, err)
		vm := vmtest.Start(t, onKernel(t, nested.KernelDefault, vmtest.Append("loglevel=7"), vmtest.Device(disk),
			vmtest.Net(nic, vmtest.UserNet(), network), vmtest.Share(share, "/mnt/share"), vmtest.Writable(kept))...)
		busybox := asset(t, nested.AssetBusybox)
		sh := func(script string) string {
			t.Helper()
			return vm.Output(busybox, "sh", "-ec", strings.ReplaceAll(script, "busybox", busybox))
		}

		// Its console beside its commands.
		talk := vm.Command(busybox, "sh", "-ec", "exec <>/dev/ttyS0 >&0; echo 'name: '; read name; echo \"hello $name\"")
		require.NoError(t, talk.Start())
		vm.Expect("name: ")
		vm.Send("vole\n")
		vm.Expect(`(?m)^hello vole$`)
		require.NoError(t, talk.Wait())

		release, err := kernel.Release(asset(t, nested.KernelDefault))
		require.NoError(t, err)
		assert.Equal(t, release, vm.Release())
		assert.Equal(t, release+"\n", vm.Output(busybox, "uname", "-r"))
		assert.Equal(t, "/init\n", sh(`busybox tr '\0' '\n' </proc/1/cmdline | busybox head -n 1`))
		dir, err := os.Getwd()
		require.NoError(t, err)
		assert.Equal(t, dir+"\n", sh("pwd"), "as with os/exec")

		// Files in and out, those of the host, and what of them stays.
		assert.Equal(t, "vmtest", sh("busybox cat /sys/block/vda/serial"))
		assert.Equal(t, "from the host", string(vm.ReadFile("/mnt/share/in")))
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		vm.WriteFile("/mnt/share/out", big, 0o640)
		vm.WriteFile("/tmp/vmtest-gone", []byte("x"), 0o644)
		vm.WriteFile(filepath.Join(kept, "kept"), []byte("x"), 0o644)
		vm.CopyOut("/mnt/share/out", filepath.Join(share, "copy"))
		copied, err := os.ReadFile(filepath.Join(share, "copy"))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(big, copied))

		// Commands as os/exec has them.
		cmd := vm.Command(busybox, "sh", "-c", "cat; echo err >&2; exit 7")
		cmd.Stdin = strings.NewReader("in")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var exit *remote.ExitError
		require.ErrorAs(t, err, &exit)
		assert.Equal(t, 7, exit.ExitCode())
		assert.Equal(t, "in|err\n", string(out)+"|"+stderr.String())

		// The console.
		sh("echo '<4>vmtest: number 42' >/dev/kmsg")
		assert.Equal(t, "42", vm.Expect(`vmtest: number (\d+)\n`)[1])
		assert.Contains(t, vm.Console(), "Linux version "+release)

		// Sockets.
		peer := vm.Command(asset(t, nested.AssetPeer), "serve", "1", "vsock:4294967295:7001")
		require.NoError(t, peer.Start())
		conn := vm.Dial(7001)
		assert.NoError(t, stream.Client(conn, "echo", 1<<20))
		assert.NoError(t, conn.Close()) // the peer waits for it
		assert.NoError(t, peer.Wait())

		// The user network, in both directions, with no port of this host.
		before := listening(t)
		peer = vm.Command(asset(t, nested.AssetPeer), "serve", "1", "tcp:0.0.0.0:7001")
		require.NoError(t, peer.Start())
		conn = vm.DialTCP("guest:7001")
		assert.NoError(t, stream.Client(conn, "echo", 1<<20))
		assert.NoError(t, conn.Close())
		assert.NoError(t, peer.Wait())
		l, err := network.Listen("tcp", "gateway:7000")
		require.NoError(t, err)
		serveStreams(t, l)
		assert.Contains(t, vm.Output(asset(t, nested.AssetPeer), "echo", "1000000", "tcp:10.0.2.2:7000"), "PEER ok")
		assert.Equal(t, before, listening(t))
	})
	out, err := os.ReadFile(filepath.Join(share, "out"))
	require.NoError(t, err)
	assert.Len(t, out, 1<<20)
	assert.FileExists(t, filepath.Join(kept, "kept"))
	assert.NoFileExists(t, "/tmp/vmtest-gone")
}

// listening are the TCP ports that somebody listens on in this network namespace.
func listening(t testing.TB) (ports []string) {
	t.Helper()
	for _, name := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile("/proc/thread-self/net/" + name)
		require.NoError(t, err)
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); f[3] == "0A" { // TCP_LISTEN
				ports = append(ports, name+" "+f[1])
			}
		}
	}
	return ports
}

// TestVMTestEndings: a test hears of its guest's panic at once, by each of its waits, and
// fails if it did not ask.
func TestVMTestEndings(t *testing.T) {
	vm := vmtest.Start(t, onKernel(t, nested.KernelDefault, vmtest.Agent(asset(t, nested.AssetVole)))...)
	err := vm.Command(asset(t, nested.AssetBusybox), "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000").Run()
	var failure *harness.Failure
	require.ErrorAs(t, err, &failure)
	assert.Equal(t, harness.Panic, failure.Kind)
	assert.Contains(t, failure.Error(), "sysrq triggered crash")
	assert.Equal(t, vmm.Panic, vm.Wait().Reason)
	assert.Same(t, failure, vm.Failure())
	vm.Expect("Kernel panic - not syncing: sysrq triggered crash")
}

// TestVMTestEach: the same test on each kernel, one after the other; and a machine
// without an agent on each.
func TestVMTestEach(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	t.Setenv("VOLE_KERNELS", strings.Join([]string{asset(t, nested.KernelCloud61), asset(t, nested.KernelGeneric61), asset(t, nested.KernelCloud612)}, ","))
	vmtest.Each(t, nil, func(t *testing.T, path string) {
		release, err := kernel.Release(path)
		require.NoError(t, err)
		assert.Contains(t, t.Name(), release)
		options := []vmtest.Option{vmtest.Kernel(path), vmtest.Patience(bootBound), vmtest.BootTimeout(bootBound)}
		vm := vmtest.Start(t, append(options, vmtest.Agent(asset(t, nested.AssetVole)))...)
		assert.Equal(t, release+"\n", vm.Output(asset(t, nested.AssetBusybox), "uname", "-r"))
		vm.Shutdown()

		plain := vmtest.Start(t, append(options, vmtest.Append("quiet"), vmtest.Initrd(initWith(t, `#!/bin/busybox sh
mount -t proc proc /proc
echo -n "name: "
read name
echo "hello $name"
exec busybox poweroff -f
`)))...)
		plain.Expect("name: ")
		plain.Send("vole\n")
		plain.Expect(`(?m)^hello vole$`)
		assert.Equal(t, vmm.Poweroff, plain.Wait().Reason)
	})
}

// sampled is how the sample's test binary has ended.
type sampled struct {
	code int
	out  string // stdout and stderr
}

// runSample runs the sample's test binary, which boots a guest for its tests. When quit is
// on its output it gets a SIGQUIT.
func runSample(t testing.TB, binary, quit string, args ...string) sampled {
	t.Helper()
	return runSampleAs(t, 0, binary, quit, args...)
}

// runSampleAs is runSample for another user, unless that is 0.
func runSampleAs(t testing.TB, user uint32, binary, quit string, args ...string) sampled {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootBound)
	defer cancel()
	path := asset(t, nested.KernelDefault)
	cmd := exec.CommandContext(ctx, binary, args...)
	dir, err := sampleDir()
	require.NoError(t, err)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VOLE_KERNEL="+path, "VOLE_CACHE="+cacheWith(t, path).Dir(), "VOLE_SAMPLE=sampled", "CI=1")
	cmd.Stdin = strings.NewReader("typed")
	if user != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	}
	out := &quitter{quit: quit, signal: func() { _ = cmd.Process.Signal(syscall.SIGQUIT) }}
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	require.NoError(t, ctx.Err(), "it hangs: %s", out.b.String())
	if cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	return sampled{cmd.ProcessState.ExitCode(), out.b.String()}
}

// TestVMTestMain: a package's tests in a guest.
func TestVMTestMain(t *testing.T) {
	binary, err := samplePath("")
	require.NoError(t, err)
	out := t.TempDir()
	for _, tc := range []struct {
		name  string
		suite nested.Suite
		args  []string
		quit  string
		code  int
		want  []string
		files []string
	}{
		{
			name: "results, streams and coverage", suite: nested.SuiteTest,
			args: []string{"-test.v", "-test.run=Guest|Streams|Fails", "-test.coverprofile=" + out + "/cover.out", "-test.gocoverdir=" + mkdir(t, out, "cover"),
				"-test.cpuprofile=cpu.out", "-test.outputdir=" + out, "-test.testlogfile=" + out + "/log"},
			code:  1,
			want:  []string{"--- PASS: TestGuest", "uid 0, umask 022, sampled\n", "to stdout: typed\nto stderr\n", "sample_test.go:", "as it should", "coverage: 66.7%"},
			files: []string{"cover.out", "cover/covmeta.*", "cover/covcounters.*", "cpu.out", "log"},
		},
		{
			name: "a panic of the guest", suite: nested.SuiteTest,
			args: []string{"-test.run=Panics"}, code: 1,
			want: []string{"vmtest: FAIL: the guest's kernel panicked: sysrq triggered crash\nthe last of the guest's console:\n    ["},
		},
		{
			name: "SIGQUIT", suite: nested.SuiteTest,
			args: []string{"-test.run=Hangs"}, quit: "hanging", code: 2,
			want: []string{"SIGQUIT: quit", "sample.hangsHere()"},
		},
		{
			name: "the time of the tests", suite: nested.SuiteMatrix,
			args: []string{"-test.run=Hangs", "-test.timeout=1s"}, code: 2,
			want: []string{"panic: test timed out after 1s", "sample.hangsHere()"},
		},
		{name: "an exit code", suite: nested.SuiteMatrix, args: []string{"-test.run=TestExits"}, code: 7},
		{name: "a signal", suite: nested.SuiteMatrix, args: []string{"-test.run=TestKilled"}, code: 137, want: []string{"ended by killed"}},
		{
			name: "a benchmark", suite: nested.SuiteMatrix,
			args: []string{"-test.run=^$", "-test.bench=.", "-test.benchtime=100x"}, code: 0,
			want: []string{"BenchmarkCovered", "ns/op"},
		},
		{
			name: "a fuzz test", suite: nested.SuiteMatrix,
			args: []string{"-test.run=^$", "-test.fuzz=FuzzFinds", "-test.fuzzcachedir=" + mkdir(t, out, "fuzz")}, code: 1,
			want: []string{"--- FAIL: FuzzFinds", "Failing input written to testdata/fuzz/FuzzFinds/"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nested.RequireSuite(t, tc.suite)
			r := runSample(t, binary, tc.quit, tc.args...)
			assert.Equal(t, tc.code, r.code, r.out)
			for _, want := range tc.want {
				assert.Contains(t, r.out, want)
			}
			for _, f := range tc.files {
				found, err := filepath.Glob(filepath.Join(out, f))
				require.NoError(t, err)
				assert.NotEmpty(t, found, f)
			}
			dir, err := sampleDir()
			require.NoError(t, err)
			assert.NoFileExists(t, filepath.Join(dir, "left-behind"), "it is gone with the guest")
			if tc.name == "a fuzz test" {
				found, err := filepath.Glob(filepath.Join(dir, "testdata/fuzz/FuzzFinds/*"))
				require.NoError(t, err)
				assert.Len(t, found, 1, "the failing input")
			}
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "testdata/fuzz")))
		})
	}
}

// TestVMTestUser: who is nobody here is nobody in the guest, and needs nothing but the
// right to /dev/kvm. Root in the guest is for who asks for it.
func TestVMTestUser(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteMatrix)
	if !nested.Inside() {
		t.Skip("only in the emulated host, whose /dev/kvm may be everybody's")
	}
	require.NoError(t, os.Chmod(vmm.KVMDevice, 0o666))
	binary, err := samplePath("")
	require.NoError(t, err)
	const nobody = 65534
	r := runSampleAs(t, nobody, binary, "", "-test.v", "-test.run=Streams|User")
	assert.Equal(t, 0, r.code, r.out)
	assert.Contains(t, r.out, "uid 65534, gid 65534\n")
	assert.Contains(t, r.out, "to stdout: typed\n")
}

// TestVMTestRace: a test binary with the race detector is dynamic.
func TestVMTestRace(t *testing.T) {
	r := runSample(t, raceSample(t), "", "-test.v", "-test.run=Guest|Races")
	assert.Equal(t, 1, r.code, r.out)
	assert.Contains(t, r.out, "--- PASS: TestGuest")
	assert.Contains(t, r.out, "WARNING: DATA RACE")
}

// TestExecRace: the same binary by `vole exec`, as "go test -race -exec" has it.
func TestExecRace(t *testing.T) {
	binary := raceSample(t)
	t.Parallel()
	e := execVole(t, 0, []string{"-m", "1G"}, binary, "-test.v", "-test.run=Races", "-test.paniconexit0")
	e.Env = append(e.Env, "VOLE_VMTEST_INSIDE=1") // its TestMain is vmtest's
	r := e.result(t)
	assert.Equal(t, 1, r.code, r.stdout+r.stderr)
	assert.Contains(t, r.stdout, "--- FAIL: TestRaces")
	assert.Contains(t, r.stderr, "WARNING: DATA RACE")
}

func raceSample(t testing.TB) string {
	t.Helper()
	nested.RequireSuite(t, nested.SuiteMatrix)
	binary, err := samplePath("-race")
	require.NoError(t, err)
	if _, err := os.Stat(binary); err != nil {
		t.Skip("the race detector needs gcc where this is built: ", err)
	}
	return binary
}

func mkdir(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.Mkdir(path, 0o777))
	return path
}

// quitter collects output, and calls signal once when quit is in it.
type quitter struct {
	quit   string
	signal func()
	b      bytes.Buffer
}

func (q *quitter) Write(p []byte) (int, error) {
	q.b.Write(p)
	if q.quit != "" && strings.Contains(q.b.String(), q.quit) {
		q.quit = ""
		q.signal()
	}
	return len(p), nil
}
