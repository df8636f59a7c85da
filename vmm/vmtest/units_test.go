package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/harness"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(m.Run())
}

// env is an environment.
type env map[string]string

func (e env) get(name string) string { return e[name] }

// noKVM is a machine without KVM.
func noKVM(c *config) { c.kvm = func() error { return errors.New("no /dev/kvm at all") } }

// withEnv has the options see another environment.
func withEnv(e env) Option { return func(c *config) { c.getenv = e.get } }

// TestWithoutKVM: what becomes of tests where no guest can run.
func TestWithoutKVM(t *testing.T) {
	for name, tc := range map[string]struct {
		env  env
		opt  Option
		want string // "skip", "fail", or what is said
	}{
		"nothing said":         {env{}, nil, "skip"},
		"in CI":                {env{"CI": "true"}, nil, "fail"},
		"CI is said to be off": {env{"CI": "false"}, nil, "skip"},
		"CI is 0":              {env{"CI": "0"}, nil, "skip"},
		"asked to skip in CI":  {env{"CI": "1"}, WithoutKVM(Skip), "skip"},
		"asked to fail":        {env{}, WithoutKVM(Fail), "fail"},
		"the variable first":   {env{"VOLE_WITHOUT_KVM": "skip"}, WithoutKVM(Fail), "skip"},
		"the variable fails":   {env{"VOLE_WITHOUT_KVM": "fail"}, WithoutKVM(Skip), "fail"},
		"no such policy":       {env{"VOLE_WITHOUT_KVM": "maybe"}, nil, `"maybe", is neither skip nor fail`},
	} {
		t.Run(name, func(t *testing.T) {
			opts := []Option{withEnv(tc.env), noKVM}
			if tc.opt != nil {
				opts = append(opts, tc.opt)
			}
			closed := &closing{}
			fake := runFake(t, time.Time{}, func(ft *fakeTB) {
				Start(ft, append(opts, func(c *config) { c.harness.Machine.Devices = append(c.harness.Machine.Devices, closed) })...)
			})
			assert.True(t, closed.is, "the devices are the machine's")
			assert.Equal(t, tc.want == "skip", fake.skipped)
			assert.Equal(t, tc.want != "skip", fake.failed)

			var stderr bytes.Buffer
			r := newMainRun(opts)
			r.stderr = &stderr
			code := r.run()
			assert.Equal(t, fake.failed, code != 0)
			for _, said := range []string{fake.said(), stderr.String()} {
				if tc.want == "skip" || tc.want == "fail" {
					assert.Contains(t, said, "no guest can run here: no /dev/kvm at all")
				} else {
					assert.Contains(t, said, tc.want)
				}
			}
			if tc.want == "skip" {
				assert.Contains(t, stderr.String(), "SKIP: no test ran")
			}
		})
	}
}

// TestMistakes show where there is no KVM, too: nothing is skipped then.
func TestMistakes(t *testing.T) {
	for name, tc := range map[string]struct {
		opts []Option
		want string
	}{
		"no such directory":        {[]Option{Writable("/no/such/dir")}, "/no/such/dir"},
		"a share without an agent": {[]Option{NoAgent(), Share("/tmp", "/mnt")}, "the share of /tmp"},
		"a root without an agent":  {[]Option{Initrd("i"), Root("/srv")}, "no root"},
		"modules without an agent": {[]Option{NoAgent(), Modules("loop")}, "the module loop"},
		"an agent that is none":    {[]Option{NoAgent(), Agent("/bin/vole")}, "/bin/vole can't be the agent"},
		"TestMain without Init":    {[]Option{func(c *config) { c.self = func() bool { return false } }}, "does not call vmtest.Init"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := runFake(t, time.Time{}, func(ft *fakeTB) {
				Start(ft, append(tc.opts, withEnv(env{}), noKVM)...)
			})
			assert.True(t, fake.failed)
			assert.Contains(t, fake.said(), tc.want)
		})
	}
	for name, tc := range map[string]struct {
		opts []Option
		want string
	}{
		"without an agent":  {[]Option{NoAgent()}, "need an agent"},
		"without a root":    {[]Option{NoRoot()}, "need this host's root"},
		"with another root": {[]Option{Root("/srv")}, "need this host's root"},
		"no such directory": {[]Option{Writable("/no/such/dir")}, "/no/such/dir"},
	} {
		t.Run("Main "+name, func(t *testing.T) {
			var stderr bytes.Buffer
			r := newMainRun(append(tc.opts, withEnv(env{}), noKVM))
			r.stderr = &stderr
			assert.Equal(t, 1, r.run())
			assert.Contains(t, stderr.String(), "FAIL: no test ran: ")
			assert.Contains(t, stderr.String(), tc.want)
		})
	}
}

// TestUnusableMachines: what harness and vmm refuse ends the test.
func TestUnusableMachines(t *testing.T) {
	kvm := func(c *config) { c.kvm = func() error { return nil } }
	for name, tc := range map[string]struct {
		opts []Option
		want string
	}{
		"no such kernel":    {[]Option{Kernel("/no/such/kernel")}, "/no/such/kernel"},
		"no such version":   {[]Option{Kernel("0.9")}, `no kernel "0.9" on this machine`},
		"no such share":     {[]Option{Kernel("/dev/null"), Share("/no/such/share", "/mnt")}, "/no/such/share"},
		"no machine at all": {[]Option{Kernel("/no/such/kernel"), NoAgent()}, "/no/such/kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			closed := &closing{}
			fake := runFake(t, time.Time{}, func(ft *fakeTB) {
				Start(ft, append(tc.opts, withEnv(env{}), kvm, func(c *config) { c.harness.Machine.Devices = append(c.harness.Machine.Devices, closed) })...)
			})
			assert.True(t, fake.failed)
			assert.False(t, fake.skipped)
			assert.Contains(t, fake.said(), tc.want)
			assert.True(t, closed.is)
		})
	}
}

func TestOptions(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	below := filepath.Join(top, "below")
	require.NoError(t, os.Mkdir(below, 0o777))
	require.NoError(t, os.Symlink(top, filepath.Join(top, "link")))

	c := newConfig([]Option{
		Memory(4096), CPUs(3), Append("a", "b=1"), Append("c"), Modules("loop"), Timeout(time.Minute), BootTimeout(time.Second),
		Writable(below, filepath.Join(top, "link")), FatalOops(), Agent("/bin/a"), CorePattern("/tmp/core"),
	})
	require.NoError(t, c.complete())
	h := c.harness
	assert.EqualValues(t, 4096, h.Machine.Memory)
	assert.Equal(t, 3, h.Machine.CPUs)
	assert.Equal(t, harness.DefaultCmdline+" a b=1 c", h.Machine.Cmdline)
	assert.Equal(t, []string{"loop"}, h.Modules)
	assert.Equal(t, time.Minute, h.Machine.Timeout)
	assert.Equal(t, time.Second, h.BootBound)
	assert.Equal(t, []string{top}, h.Root.Writable, "what is below another is left out, links are followed")
	assert.True(t, h.FatalOops)
	assert.Equal(t, "/bin/a", h.Init)
	assert.Equal(t, "/tmp/core", h.CorePattern)
	assert.Equal(t, DefaultPatience, c.patience)

	c = newConfig([]Option{Initrd("initrd.img"), Append("x")})
	require.NoError(t, c.complete())
	assert.Equal(t, vmm.DefaultCmdline+" x", c.harness.Machine.Cmdline)
	assert.Zero(t, c.harness.Machine.Memory)

	c = newConfig([]Option{Cmdline("only"), Append("x")})
	require.NoError(t, c.complete())
	assert.Equal(t, "only x", c.harness.Machine.Cmdline)
	assert.EqualValues(t, DefaultMemory, c.harness.Machine.Memory)

	c = newConfig([]Option{Share(top, "/mnt/a"), ShareReadOnly(below, "/mnt/b")})
	require.NoError(t, c.complete())
	require.NoError(t, c.openShares())
	defer c.closeDevices()
	require.Len(t, c.harness.Machine.Devices, 2)
	assert.EqualValues(t, "/mnt/b", c.harness.Shares[1].Dir)
	assert.True(t, c.harness.Shares[1].ReadOnly)
	assert.NotEqual(t, c.harness.Shares[0].Tag, c.harness.Shares[1].Tag)
}

// TestMainOptions: what Main makes of the flags of the test binary.
func TestMainOptions(t *testing.T) {
	var seen *harness.Options
	r := newMainRun([]Option{BootTimeout(time.Minute), Configure(func(o *harness.Options) { seen = o })})
	r.args = []string{"p.test", "-test.timeout=10m"}
	require.NoError(t, r.prepare())
	assert.Equal(t, 12*time.Minute, r.harness.Machine.Timeout, "the tests end themselves, and before that")
	assert.Same(t, &r.harness, seen)

	r = newMainRun(nil)
	r.args = []string{"p.test"}
	require.NoError(t, r.prepare())
	assert.Zero(t, r.harness.Machine.Timeout)
	assert.Equal(t, harness.CorePattern(), r.harness.CorePattern)

	r = newMainRun([]Option{CorePattern("|/bin/keep")})
	r.args = []string{"p.test"}
	require.NoError(t, r.prepare())
	assert.Equal(t, "|/bin/keep", r.harness.CorePattern)
}

// TestMainScratch: what the tests' caller wants back, but not what the guest has itself.
func TestMainScratch(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	r := newMainRun([]Option{withEnv(env{"GOCOVERDIR": dir})})
	r.args = []string{"p.test", "-test.cpuprofile=/dev/null", "-test.trace=/dev/stdout"}
	s := r.scratch()
	defer s.Remove()
	assert.Equal(t, []string{dir}, s.Dirs())

	for _, w := range []struct{ writable, says string }{
		{"/", ""},
		{dir, ""},
		{"/srv", "vmtest: warning: the profile or coverage in " + dir + " will be gone with the guest: " +
			"a directory as wide as the user's home is not made writable without the option Writable\n"},
	} {
		var stderr strings.Builder
		r := newMainRun(nil)
		r.stderr, r.root().Writable = &stderr, []string{w.writable}
		r.warnLeft([]string{dir})
		assert.Equal(t, w.says, stderr.String(), w.writable)
	}
}

// TestMainEnding: the exit code of how the tests ended, and what is said.
func TestMainEnding(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		code int
		says string
	}{
		"fine":                        {nil, 0, ""},
		"not writable":                {&remote.StartError{Cause: wire.CauseFiles, What: "/x can't be made writable"}, 1, "vmtest: FAIL: /x can't be made writable\n"},
		"full":                        {&remote.StreamError{File: 1, Err: syscall.ENOSPC}, 1, "vmtest: FAIL: stdout: no space left on device\n"},
		"cut by a panic":              {cutBy(0, &harness.Failure{Kind: harness.Panic, Text: "the guest's kernel panicked"}), 1, "vmtest: FAIL: the guest's kernel panicked\n"},
		"failed, and cut by a panic":  {cutBy(1, &harness.Failure{Kind: harness.Panic, Text: "the guest's kernel panicked"}), 1, "vmtest: FAIL: the guest's kernel panicked\n"},
		"cut by a signal":             {cutBy(0, &stopped{143, "terminated"}), 143, "vmtest: FAIL: terminated: the guest was ended\n"},
		"failed, and cut by a signal": {cutBy(1, &stopped{143, "terminated"}), 143, "vmtest: FAIL: terminated: the guest was ended\n"},
		"cut by nobody":               {cutBy(0, nil), 1, "vmtest: FAIL: stdout: cut short\n"},
		"stopped":                     {&stopped{143, "terminated"}, 143, "vmtest: FAIL: terminated: the guest was ended\n"},
		"stdin cut":                   {&remote.StreamError{File: 0, Err: remote.ErrCut}, 1, "vmtest: FAIL: stdin: cut short\n"},
		"no stdin":                    {&remote.StreamError{File: 0, Err: syscall.EISDIR}, 0, "vmtest: warning: stdin: is a directory: the tests' input ends there\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr strings.Builder
			r := newMainRun(nil)
			r.stderr, r.cmd = &stderr, &remote.Cmd{}
			assert.Equal(t, c.code, r.ending(&harness.Machine{}, c.err))
			assert.Equal(t, c.says, stderr.String())
		})
	}
}

// cutBy is the error of tests whose output was cut, beside their own end or without one.
func cutBy(code int, why error) error {
	cut := &remote.StreamError{File: 1, Err: remote.ErrCut}
	if why != nil {
		cut.Err = fmt.Errorf("%w: %w", remote.ErrCut, why)
	}
	if code == 0 {
		return cut
	}
	return errors.Join(&remote.ExitError{ProcessState: &remote.ProcessState{}}, cut)
}

// TestNoteInputs: go test's log gets the variables, if it is a log.
func TestNoteInputs(t *testing.T) {
	log := filepath.Join(t.TempDir(), "testlog.txt")
	r := newMainRun(nil)
	r.args = []string{"p.test", "-test.testlogfile=" + log}
	r.noteInputs()
	assert.NoFileExists(t, log)
	require.NoError(t, os.WriteFile(log, []byte("# another form\n"), 0o666))
	r.noteInputs()
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	assert.Equal(t, "# another form\n", string(text))
	require.NoError(t, os.WriteFile(log, []byte("# test log\nstat x\n"), 0o666))
	r.noteInputs()
	text, err = os.ReadFile(log)
	require.NoError(t, err)
	assert.Equal(t, "# test log\nstat x\ngetenv VOLE_KERNEL\ngetenv VOLE_WITHOUT_KVM\ngetenv CI\n", string(text))
}

func TestDumpBound(t *testing.T) {
	assert.Equal(t, time.Minute, dumpBound(""))
	assert.Equal(t, time.Minute, dumpBound("0"))
	assert.Equal(t, 4*time.Second, dumpBound("10s"), "go test waits for 5 s")
	assert.Equal(t, 9*time.Second, dumpBound("100s"))
	assert.Equal(t, time.Minute, dumpBound("10h"))
}

func TestMargin(t *testing.T) {
	assert.Equal(t, time.Second, margin(2*time.Second))
	assert.Equal(t, 4*time.Second, margin(10*time.Second))
	assert.Equal(t, 12*time.Second, margin(2*time.Minute))
	assert.Equal(t, 20*time.Second, margin(10*time.Minute))
}

func TestConsoleExpect(t *testing.T) {
	ended := make(chan struct{})
	c := &console{}
	expect := func(pattern string) (string, error) {
		found, err := c.expect(t.Context(), regexp.MustCompile(pattern), ended)
		return strings.Join(found, "|"), err
	}
	fmt.Fprint(c, "one\r\ntwo 22\r\nthr")
	for _, tc := range []struct{ pattern, want string }{
		{`(?m)^one$`, "one"},
		{`two (\d+)(x)?\n`, "two 22\n|22|"},
	} {
		got, err := expect(tc.pattern)
		require.NoError(t, err)
		assert.Equal(t, tc.want, got)
	}
	// What was passed by is not found again, and what comes in parts is found.
	done := make(chan string)
	go func() {
		got, _ := expect(`(one|three)`)
		done <- got
	}()
	for _, b := range []byte("ee\rx\r") {
		_, _ = c.Write([]byte{b})
	}
	assert.Equal(t, "three|three", <-done)
	close(ended)
	_, err := expect("x")
	require.NoError(t, err, "it came before the end")
	_, err = expect("x")
	assert.ErrorIs(t, err, errConsoleEnd)
	assert.Equal(t, "one\ntwo 22\nthree\rx", c.String(), "a \\r that ends no line is one")

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDeadline)
	_, err = (&console{}).expect(ctx, regexp.MustCompile("x"), nil)
	assert.ErrorIs(t, err, errDeadline)
}

// TestConsoleIsBounded: a guest that floods its console costs so much and no more.
func TestConsoleIsBounded(t *testing.T) {
	c := &console{}
	line := bytes.Repeat([]byte("x"), 1<<20-1)
	for range 20 {
		_, _ = c.Write(append(line, '\n'))
	}
	fmt.Fprint(c, "end")
	assert.LessOrEqual(t, len(c.text), 2*maxConsole)
	assert.GreaterOrEqual(t, len(c.String()), maxConsole)
	found, err := c.expect(t.Context(), regexp.MustCompile("end"), nil)
	require.NoError(t, err)
	assert.Equal(t, []string{"end"}, found)
}

func TestConsoleTail(t *testing.T) {
	c := &console{}
	fmt.Fprint(c, "1\n2\n3\n4\n\n\n")
	assert.Equal(t, "3\n4", c.tail(2, 100))
	assert.Equal(t, "1\n2\n3\n4", c.tail(9, 100))
	assert.Equal(t, "3\n4", c.tail(9, 4))
	assert.Empty(t, (&console{}).tail(9, 9))
}

func TestPrintable(t *testing.T) {
	assert.Equal(t, `a\x1b[2Jä	\xff\x7f`+"\n"+`\xc2\x9b`, printable("a\x1b[2Jä\t\xff\x7f\n\u009b\n"))
}

// kernelFile is what is taken for a bzImage of a version.
func kernelFile(t testing.TB, path, version string) string {
	t.Helper()
	b := make([]byte, 0x4000)
	copy(b[0x202:], "HdrS")
	b[0x1fe], b[0x1ff], b[0x1f1] = 0x55, 0xaa, 4
	b[0x206], b[0x207] = 0x0f, 0x02
	b[0x20e], b[0x20f] = 0x00, 0x04
	copy(b[0x600:], version+" (someone) #1\x00")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o777))
	require.NoError(t, os.WriteFile(path, b, 0o666))
	return path
}

func TestKernels(t *testing.T) {
	root := t.TempDir()
	boot := func(v string) string { return kernelFile(t, filepath.Join(root, "boot/vmlinuz-"+v), v) }
	k61, k612, k6120 := boot("6.1.0-50-amd64"), boot("6.12.9-amd64"), boot("6.120.1")
	pulled := kernelFile(t, filepath.Join(root, "pulled/mine/vmlinuz"), "5.10.1-pulled")
	f := kernel.Finder{Root: root, Release: "6.12.9-amd64", Pulled: filepath.Join(root, "pulled")}
	require.NoError(t, os.WriteFile(filepath.Join(root, "boot/vmlinuz-4.0-broken"), nil, 0o666))

	for name, tc := range map[string]struct {
		names []string
		env   env
		want  []string
		err   string
	}{
		"the default":      {nil, nil, []string{k612}, ""},
		"the variable":     {nil, env{"VOLE_KERNEL": "6.1"}, []string{k61}, ""},
		"a version":        {[]string{"6.1.0-50-amd64"}, nil, []string{k61}, ""},
		"a beginning":      {[]string{"6.12"}, nil, []string{k612}, ""},
		"the newest":       {[]string{"6."}, nil, nil, `no kernel "6."`},
		"what was pulled":  {[]string{"mine"}, nil, []string{pulled}, ""},
		"a file":           {[]string{"./x"}, nil, []string{mustAbs(t, "x")}, ""},
		"all":              {[]string{"all"}, nil, []string{k6120, k612, k61, pulled}, ""},
		"versions":         {[]string{"6.1[.2]*"}, nil, []string{k6120, k612, k61}, ""},
		"files":            {[]string{root + "/boot/vmlinuz-6.12*"}, nil, []string{k612, k6120}, ""},
		"several":          {[]string{"6.12", "6.1", "6.1.0-50-amd64"}, nil, []string{k612, k61}, ""},
		"VOLE_KERNELS":     {[]string{"6.12"}, env{"VOLE_KERNELS": "6.1, mine"}, []string{k61, pulled}, ""},
		"none such":        {[]string{"7"}, nil, nil, `no kernel "7" on this machine`},
		"none matches":     {[]string{"7*"}, nil, nil, `no kernel matches "7*"`},
		"no pattern":       {[]string{"[6"}, nil, nil, "syntax error in pattern"},
		"one that is none": {[]string{"4.0-broken"}, nil, nil, "4.0-broken can't be used"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConfig([]Option{withEnv(tc.env)})
			got, err := c.each(f, tc.names)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, tc.want, got)
		})
	}
	none := kernel.Finder{Root: t.TempDir(), Release: "1", Pulled: "/nowhere"}
	for _, name := range []string{"", "all"} {
		_, err := findKernels(none, name)
		assert.ErrorIs(t, err, kernel.ErrNoKernel)
	}
}

func mustAbs(t *testing.T, path string) string {
	p, err := filepath.Abs(path)
	require.NoError(t, err)
	return p
}

func TestEach(t *testing.T) {
	path := kernelFile(t, filepath.Join(t.TempDir(), "k"), "6.6.6-mine")
	t.Setenv("VOLE_KERNELS", path)
	var ran []string
	Each(t, []string{"none such"}, func(t *testing.T, kernel string) {
		assert.Equal(t, "TestEach/6.6.6-mine", t.Name())
		ran = append(ran, kernel)
	})
	assert.Equal(t, []string{path}, ran)
}

func BenchmarkEach(b *testing.B) {
	b.Setenv("VOLE_KERNELS", kernelFile(b, filepath.Join(b.TempDir(), "k"), "6.6.6-mine"))
	Each(b, nil, func(b *testing.B, kernel string) {
		b.ReportAllocs()
		for b.Loop() {
			kernelTitle(kernel)
		}
	})
}

func TestHost(t *testing.T) {
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	zero, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer zero.Close()
	assert.True(t, isNull(null))
	assert.False(t, isNull(zero))
}
