// Command run boots the emulated host of package nested for one command, with
// the command's stdout and stderr passed through and its exit code returned.
//
//	go run ./testdata/nested/run [flags] -- ./bin/vole run -k vmlinuz
//
// The command is brought in with the libraries that it links; files that it
// opens are named with -file, or as assets with -asset, and keep their paths.
// An argument "@NAME" is the path of the asset NAME, which is brought in. It can
// be the program of `go test -exec` too:
//
//	CGO_ENABLED=0 go test -exec '/path/of/run -q --' ./kvm
//
// The command's exit code is passed on. If the emulated host itself fails, the
// command begins anew in a fresh one, once, and a line on stderr says so; not
// where stdin is passed through. Exit code 125 means that the command did not
// come to its end.
//
// Like anything that gives itself to the emulated host as init, it is built with
// CGO_ENABLED=0 or brings its C library along.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/testdata/nested"
)

// failure is the exit code when the command could not run to its end.
const failure = 125

// list is a flag that may be repeated.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	nested.RunIfInit()
	var c nested.Command
	var assets, files, out list
	var always, quiet, stdin, check, env bool
	var limit time.Duration
	flag.Var(&assets, "asset", "bring in an asset: "+strings.Join([]string{
		nested.AssetBusybox, nested.AssetDrivers, nested.AssetQEMU, nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612}, ", ")+" (repeatable)")
	flag.Var(&files, "file", "bring in a file or directory (repeatable)")
	flag.Var(&out, "out", "bring back a file or directory (repeatable)")
	flag.Var((*list)(&c.Env), "env", "set a variable, NAME=VALUE (repeatable)")
	flag.Var((*list)(&c.Modules), "module", "load a module in the emulated host (repeatable)")
	flag.StringVar(&c.Memory, "memory", nested.DefaultMemory, "memory of the emulated host")
	flag.DurationVar(&limit, "timeout", 0, "end the command after this long; 0 is never")
	flag.BoolVar(&always, "always", false, "use the emulated host although /dev/kvm could boot a stock kernel")
	flag.BoolVar(&quiet, "q", false, "say nothing about the emulated host unless it fails")
	flag.BoolVar(&stdin, "stdin", false, "pass stdin through")
	flag.BoolVar(&check, "check", false, "only say whether /dev/kvm boots a stock kernel; exit code 0 if it does")
	flag.BoolVar(&env, "unit-env", false, "only print the environment in which unit tests find kernels and tools, for eval")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: run [flags] -- COMMAND [ARGS]")
		flag.PrintDefaults()
	}
	flag.Parse()
	switch {
	case check:
		if why := nested.CannotBoot(); why != "" {
			fmt.Fprintln(os.Stderr, "nested:", why)
			os.Exit(1)
		}
		return
	case env:
		text, err := nested.UnitEnv()
		if err != nil {
			fatal(err)
		}
		fmt.Print(text)
		return
	}
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	note := say
	if quiet {
		note = func(string) {}
	}
	c.Assets, c.Files, c.Args = assets, files, flag.Args()
	for i, arg := range c.Args {
		name, ok := strings.CutPrefix(arg, "@")
		if !ok {
			continue
		}
		path, err := nested.Asset(name)
		if err != nil {
			fatal(err)
		}
		c.Args[i] = path
		c.Assets = append(c.Assets, name)
	}
	for _, o := range out {
		path, err := filepath.Abs(o)
		if err != nil {
			fatal(err)
		}
		c.Out = append(c.Out, path)
	}
	path, err := exec.LookPath(c.Args[0])
	if err == nil {
		c.Args[0], err = filepath.Abs(path)
	}
	if err != nil {
		fatal(err)
	}
	if err := asTest(&c); err != nil {
		fatal(err)
	}
	c.Stdout, c.Stderr, c.Note = os.Stdout, os.Stderr, note
	if stdin {
		c.Stdin = os.Stdin
	}
	os.Exit(run(&c, always, limit))
}

// asTest gives a test binary, as `go test -exec` runs it, what it expects: its
// testdata, and a way back for the files that its flags name.
func asTest(c *nested.Command) error {
	if !strings.HasSuffix(c.Args[0], ".test") {
		return nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	if st, err := os.Stat("testdata"); err == nil && st.IsDir() {
		c.Files = append(c.Files, filepath.Join(dir, "testdata"))
	}
	c.Out = append(c.Out, nested.TestOutputs(dir, c.Args[1:])...)
	return nil
}

func fatal(err error) {
	say(err.Error())
	os.Exit(failure)
}

func say(s string) { fmt.Fprintln(os.Stderr, "nested: "+strings.TrimPrefix(s, "nested: ")) }

// run runs the command here if /dev/kvm boots a stock kernel, else in an
// emulated host, and returns its exit code.
func run(c *nested.Command, always bool, limit time.Duration) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	why := nested.CannotBoot()
	if why == "" && !always {
		return direct(ctx, c, limit)
	}
	if why != "" {
		c.Note(why + ": booting the emulated host")
	}
	return emulated(ctx, c.Stdin == nil, say, func() (nested.Result, error) {
		if limit > 0 {
			c.Deadline = time.Now().Add(limit)
		}
		return c.Run(ctx)
	})
}

// emulated runs the command by boot, which gives it an emulated host, and
// returns its exit code. If that host fails and again is set, which it must not
// be where stdin is gone, there is a second one.
func emulated(ctx context.Context, again bool, say func(string), boot func() (nested.Result, error)) int {
	res, err := boot()
	if again && errors.Is(err, nested.ErrHost) && ctx.Err() == nil {
		say(err.Error() + "; once more in a fresh one, output from its beginning")
		res, err = boot()
	}
	if err == nil {
		return res.Code
	}
	say(err.Error())
	if res.Console != "" && ctx.Err() == nil {
		say("its console ends so:\n" + res.Console)
	}
	return failure
}

// direct runs the command on this machine.
func direct(ctx context.Context, c *nested.Command, limit time.Duration) int {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	case errors.As(err, &exit):
		return 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
	}
	say(err.Error())
	return failure
}
