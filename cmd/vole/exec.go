package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/vmm/harness"
	"github.com/vole-vmm/vole/vmm/spec"
)

// Exit codes of `vole exec` for its own failures. Any other is the command's.
const (
	codeExecEnded  = 120 // the guest ended before the command did, or its agent has gone
	codeExecPanic  = 121
	codeExecOops   = 122 // with --fatal-oops
	codeExecMemory = 123 // the command was killed since the guest had no memory left
	codeExecTime   = 124 // --timeout, --hang, or a guest that doesn't come up or answer
	codeExecHost   = 125 // bad usage, bad input, or an error on the host, as an output that can't be written
	codeExecStart  = 126 // the command can't be run, or not in its directory, or not over the files asked for
	codeExecNone   = 127 // there is no such command
)

const execLong = `Run a command of this machine on a guest kernel, and end with the command's exit code.

The guest sees this machine's files: what it writes is kept in its memory and gone with it, but for
what it writes below --rw directories, which is written here. /proc, /sys, /dev and /run are the
guest's own, but for --rw directories in /run and /dev/shm. The command has the same user, working
directory and environment as it would have here. stdin, stdout and stderr are the command's, each by
itself; those that are a terminal here are one there, and none is needed. Signals go to the command
(SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2; the third of the first four ends the guest), and
so does what is typed, also Ctrl-c, once the guest is up; before, Ctrl-c ends it. On a terminal,
Ctrl-] three times within a second ends the guest whatever it does.

The guest's kernel needs drivers for what a guest of vole's has: their modules are looked for beside
the kernel, and in this machine's /lib/modules. Without --kernel it is the running kernel's image, if
it can be read, else the newest one that "vole kernel pull" has brought.

For a test binary that "go test" runs (go test -exec "vole exec --"), what go test wants to have back
is writable without --rw: coverage, profiles, its test log and testdata/fuzz.

The console of the guest's kernel is not shown, but for its last screen when the guest fails;
--console-log has all of it.`

const execExitCodes = `  N        the command's own; 128 and the signal's number if one has killed it
  120      the guest ended, or its agent in it, before the command did
  121      the guest's kernel panicked
  122      the guest's kernel oopsed, with --fatal-oops
  123      the guest had no memory left, and its kernel killed the command
  124      --timeout or --hang has passed, or the guest did not come up or answer in time
  125      bad usage or bad input (nothing was started), or an error on the host, or of stdout or stderr,
           or stdin did not come to the command as a whole
  126      the command can't be run, or not in its directory, or a --rw directory can't be written to
  127      there is no such command
  128 + N  vole was ended by signal N before the command was: it came before the guest was up, or for
           the third time; 130 also for Ctrl-] three times
A command may use the same codes: what vole says on stderr, and in --report, tells them apart.`

// execFlags are the flags of exec.
type execFlags struct {
	machineFlags
	rw         []string
	env        []string
	cwd        string
	user       string
	modules    []string
	hang       time.Duration
	bootBound  time.Duration
	fatalOops  bool
	consoleLog string
	report     string
	verbose    bool
}

func newExec() *cobra.Command {
	f := &execFlags{}
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARGUMENTS]",
		Short: "Run a command on a guest kernel over this machine's files",
		Long:  execLong + "\n\nExit codes:\n" + execExitCodes,
		Example: `  vole exec -- uname -a
  tar c . | vole exec -k vmlinuz-6.12 -- sha256sum
  vole exec --rw . -m 4G -c 2 -- make
  go test -exec "vole exec --" ./...`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return execUsage(errors.New("no command is given: vole exec [flags] -- COMMAND"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return f.run(args) },
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return execUsage(flagError(cmd, err)) })
	f.machineFlags.add(cmd)
	fs := cmd.Flags()
	for _, hidden := range []string{"initrd", "on-reset", "console", "console-device"} {
		// They are for run: machine says so.
		_ = fs.MarkHidden(hidden)
	}
	for name, usage := range map[string]string{
		"memory":  fmt.Sprintf("the guest's memory: bytes, or a number with K, M, G or T (default %s)", execMemory),
		"cmdline": fmt.Sprintf("the kernel command line instead of %q", harness.DefaultCmdline),
		"timeout": fmt.Sprintf("end the guest after that long, as 30s or 5m (exit code %d)", codeExecTime),
	} {
		fs.Lookup(name).Usage = usage
	}
	fs.Var(&each{kind: "DIR", set: func(s string) error {
		dir, err := writableDir(s)
		f.rw = append(f.rw, dir)
		return err
	}}, "rw", "a directory in which the command's changes are made on this machine (repeatable)")
	fs.Var(&each{kind: "K=V", set: func(s string) error {
		if name, _, ok := strings.Cut(s, "="); !ok || name == "" {
			return fmt.Errorf("%q is not a variable: want NAME=VALUE", s)
		}
		f.env = append(f.env, s)
		return nil
	}}, "env", "a variable of the command's environment, which is otherwise that of vole (repeatable)")
	onceString(fs, &f.cwd, "cwd", "DIR", "the command's working directory (default: vole's)")
	onceString(fs, &f.user, "user", "NAME", "who runs the command: a name or UID[:GID] (default: the user of vole)")
	fs.Var(&each{kind: "MODULE", set: func(s string) error {
		if s == "" {
			return errEmpty
		}
		f.modules = append(f.modules, s)
		return nil
	}},
		"module", "a kernel module to load, besides those that the machine needs (repeatable)")
	fs.Var(&once{kind: "DURATION", set: setDuration(&f.hang)}, "hang", "end the guest when nothing has come of it for that long")
	fs.Var(&once{kind: "DURATION", set: func(s string) error {
		if d, err := time.ParseDuration(s); err == nil && d <= 0 {
			return fmt.Errorf("%q is no time at all: want more than 0, as 30s (without it there are %v)", s, harness.DefaultBootBound)
		}
		return setDuration(&f.bootBound)(s)
	}}, "boot-timeout",
		fmt.Sprintf("how long the guest may take to come up (default %v)", harness.DefaultBootBound))
	fs.BoolVar(&f.fatalOops, "fatal-oops", false, "end the guest at its kernel's first oops")
	onceString(fs, &f.consoleLog, "console-log", "FILE", "write the guest's console to a file")
	onceString(fs, &f.report, "report", "FILE", "write what happened when: JSON if the name ends in .json, a picture if in .svg, else text; - is stderr")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "say more on stderr")
	completeFiles(cmd, "report", "console-log")
	_ = cmd.MarkFlagDirname("rw")
	_ = cmd.MarkFlagDirname("cwd")
	fs.SortFlags = false
	fs.SetInterspersed(false)
	return cmd
}

func setDuration(d *time.Duration) func(string) error {
	return func(s string) (err error) {
		*d, err = spec.ParseTimeout(s)
		return err
	}
}

// errEmpty is what is wrong with the value of a flag.
var errEmpty = errors.New("the value is empty")

// writableDir is the absolute path of a directory that is there, and is not the guest's
// own.
func writableDir(s string) (string, error) {
	if s == "" {
		return "", errEmpty
	}
	dir, err := filepath.Abs(s)
	if err != nil {
		return "", err
	}
	// What the guest sees under this name is what it leads to.
	dir, err = filepath.EvalSymlinks(dir)
	var path *os.PathError
	if errors.As(err, &path) {
		return "", fmt.Errorf("%s: %w", s, path.Err)
	}
	if err != nil {
		return "", err
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return "", err
	case !info.IsDir():
		return "", fmt.Errorf("%s: not a directory", s)
	}
	if own := harness.OwnOf(dir); own != "" {
		return "", fmt.Errorf("%s: the guest has a %s of its own", s, own)
	}
	return dir, nil
}

// execUsage gives an error of the user's the exit code that exec has for it.
func execUsage(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{codeExecHost, err}
}

// execError gives an error its exit code in exec, where it has none.
func execError(err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return &exitError{codeExecHost, err}
}

// run runs one command.
func (f *execFlags) run(args []string) error {
	s, err := f.session(args)
	if err != nil {
		return execError(err)
	}
	defer s.close()
	s.catchEarly()
	return execError(s.run())
}

// session checks everything that was said.
func (f *execFlags) session(args []string) (_ *execSession, err error) {
	machine, _, err := f.machine()
	if err != nil {
		return nil, err
	}
	switch {
	case machine.Initrd != "":
		return nil, errors.New("--initrd: the guest of a command has its own")
	case machine.Restart():
		return nil, errors.New("--on-reset: a command is run once")
	case machine.Console != "":
		return nil, errors.New("--console: the console of exec goes to --console-log")
	case machine.VirtioConsole():
		return nil, errors.New("--console-device: the console of exec is the serial one")
	}
	for _, share := range machine.Shares {
		if harness.ReservedTag(share.Tag) {
			return nil, fmt.Errorf("--share: the tag %s is vole's own", share.Tag)
		}
	}
	if machine.Cmdline == nil {
		line := harness.DefaultCmdline
		machine.Cmdline = &line
	}
	if machine.Memory == "" {
		machine.Memory = spec.Text(execMemory)
	}
	cfg, err := machine.Config()
	if err != nil {
		return nil, err
	}
	ignoreStops()
	s := &execSession{session: session{
		command: "exec",
		cfg:     cfg,
		machine: machine,
		console: outputFile{flag: "console-log", path: f.consoleLog},
		report:  newReport(f.report),
		started: processStart(),
	}, flags: f, args: args}
	s.term = openTerminal(int(os.Stdin.Fd()))
	s.stderr = newLineWriter(os.Stderr, s.term)
	if err := s.session.complete(f.verbose); err != nil {
		s.stderr.close()
		return nil, err
	}
	return s, nil
}

// execMemory is the guest's memory if nothing is said: room for compilers and tests. The host gives
// what the guest touches.
const execMemory = "1G"
