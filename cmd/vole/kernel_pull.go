package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/boot/kernel/pull"
)

const kernelPullLong = `Fetch kernels, with their modules, for vole: nothing is installed, and no root is needed. The path of
each kernel is printed to stdout. Without NAME it is Debian's kernel for virtual machines.

  debian                         Debian's linux-image-cloud-amd64, through this machine's apt
  linux-image-amd64              a package, or the one that it depends on; =VERSION or /RELEASE
                                 (as /bookworm-backports) behind it says which
  6.12                           the newest package of a kernel 6.12
  ghcr.io/cilium/ci-kernels:6.6  an OCI image that has boot/vmlinuz and lib/modules; also with oci:
                                 before and @sha256:DIGEST behind it
  ./FILE.deb  https://HOST/FILE.deb#sha256=HEX
                                 a package; several are taken together, as one kernel
  ./linux                        a kernel's build tree, or a directory with boot and lib/modules

apt verifies what it fetches with this machine's keys, an image is verified by its digests, and what
comes by https is believed to be the server's unless its SHA-256 is given.

A kernel that is here already, as the source has it now, is not fetched again. A pull that is
interrupted leaves no kernel; what it has downloaded is gone on with the next time, if it is certain
to be the same. Pulled kernels are below $VOLE_CACHE, or vole/kernels in the user's cache directory.
For images a login of docker or podman is used where it is written down in their files.`

func newKernelPull() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull [NAME]...",
		Short: "Fetch kernels from Debian, an OCI image, a .deb or a build tree",
		Long:  kernelPullLong,
		Example: `  vole kernel pull
  vole kernel pull 6.12 ghcr.io/cilium/ci-kernels:6.6
  vole run -k "$(vole kernel pull ./linux)"`,
		ValidArgsFunction: func(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return []string{"debian", "linux-image-cloud-amd64", "linux-image-amd64", "ghcr.io/cilium/ci-kernels:"}, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{pull.DefaultName}
			}
			sources, err := pull.Parse(args...)
			if err != nil {
				return pullError(err)
			}
			ctx, stop := interruptible()
			defer stop()
			stderr, done := newStderr(os.Stderr)
			defer done()
			for _, s := range sources {
				view := newPullView(stderr, quiet)
				r, err := pull.Pull(ctx, s, pull.Options{Cache: pullCache(), Progress: view.show})
				view.clear()
				for _, w := range r.Warnings {
					fmt.Fprintf(stderr, "%s: warning: %s\n", commandName(cmd), oneLine(w.Error()))
				}
				if err = stoppedOr(ctx, err); err != nil {
					return pullError(err)
				}
				if !quiet {
					fmt.Fprintf(stderr, "%s: %s\n", commandName(cmd), pulledLine(r))
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), r.Path); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// pullCache is the cache for the kernel's vmlinux; without one it is unpacked in the guest.
func pullCache() *kernel.Cache {
	cache, err := kernel.NewCache("")
	if err != nil {
		return nil
	}
	return cache
}

// pulledLine says what has been pulled.
func pulledLine(r pull.Result) string {
	what := "is here"
	if r.Present {
		what = "was here already"
	}
	modules := "without modules"
	if r.ModulesDir != "" {
		modules = "with its modules"
	}
	return oneLine(fmt.Sprintf("%s %s, %s (%s)", r.Release, what, modules, formatBytes(r.Bytes)))
}

// pullError makes what the user got wrong a usageError, and drops what the command's name says.
func pullError(err error) error {
	err = &pullFailure{err}
	for _, bad := range []error{pull.ErrName, pull.ErrNotFound, pull.ErrNoKernel, pull.ErrArchive} {
		if errors.Is(err, bad) {
			return &usageError{err}
		}
	}
	return err
}

// pullFailure is an error of package pull without its name in front, which the command's own has.
type pullFailure struct{ err error }

func (e *pullFailure) Error() string { return strings.TrimPrefix(e.err.Error(), "pull: ") }
func (e *pullFailure) Unwrap() error { return e.err }

// sameSignal is how soon after the first a second signal is the same one: timeout(1) sends it to its
// child and to the process group.
const sameSignal = 200 * time.Millisecond

// interruptible is a context that SIGINT, SIGTERM and SIGHUP end, with a *stopped as the cause. The
// second of them ends the process.
func interruptible() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch, done := make(chan os.Signal, 2), make(chan struct{})
	signal.Ignore(syscall.SIGPIPE)
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signal.Notify(ch, syscall.SIGHUP)
	}
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		defer close(done)
		var first time.Time
		for sig := range ch {
			code := 128 + int(sig.(syscall.Signal))
			switch {
			case first.IsZero():
				first = time.Now()
				cancel(&stopped{code, signalNames[sig]})
			case time.Since(first) > sameSignal:
				os.Exit(code)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
		<-done
		cancel(nil)
	}
}
