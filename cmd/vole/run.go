package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/guest"
	"github.com/vole-vmm/vole/vmm"
)

const runLong = `Boot a kernel in a virtual machine and end with an exit code that says how the guest ended.

Without --kernel it is the running kernel's own image, if it can be read, else the newest one that
"vole kernel pull" has brought; "vole kernel ls" shows them. Without --initrd and --disk the guest is vole itself: it prints what it sees of the
machine on one screen and powers off.

A --disk is a raw image or a block device, locked while vole has it: one writer, or any number of
readers (,ro). With ,cow what the guest writes is kept apart and dropped at the end: in a nameless
file in the directory for temporary files, or with cow=memory in RAM, of which such disks take at
most half of what the host has, or each its cow-limit. A qcow2 image can be read, if ,format=qcow2
says what it is. Distribution kernels have the disk's driver as a module: they need an initrd that
loads it before they can mount their root. SIGUSR1 makes vole look again how large the images are
and tell the guest; SIGUSR2 presses the machine's power button.

stdout is the guest's console; everything that vole says goes to stderr. When stdout can't be
written any more (the reader of a pipe is gone, the disk is full), the guest is ended with exit
code 1. What comes on stdin is typed on the console. If stdin is a terminal it is raw until the end,
Ctrl-a x leaves and Ctrl-a h helps; no terminal is needed, and one that vole is in the background of
is left alone until vole is brought to the foreground. A second process of vole restores the terminal
if vole is killed.

The first run of a bzImage boots it as it is and, after the guest's end, unpacks it into the cache,
from which later runs boot faster; --boot says otherwise. A signal cuts the unpacking short.

A guest that resets ends the run, or with --on-reset restart is started again, unless ten in a row
have reset within five seconds each. --timeout is for all of them together.

--report writes a timeline from the start of the process, the vCPUs' exits by kind, what each device
was made with and has done, and the memory used: as text to stderr for -, otherwise to a file, as
JSON if its name ends in .json; if it ends in .svg, it is a picture of the timeline.`

const runExitCodes = `  0        the guest powered off, or wrote 0 to the debug exit port
  1        an error on the host
  2        bad usage or bad input; nothing was started
  3        the guest reset
  4        the guest's kernel panicked
  5        triple fault, every processor halted for good, or KVM could not go on
  6        --timeout has passed
  7        the guest wrote another value than 0 to the debug exit port
  130      interrupted: SIGINT, or Ctrl-a x
  143      terminated: SIGTERM
  129 131  the same for SIGHUP and SIGQUIT (which prints vole's goroutines first)`

// runFlags are the flags of run that are not about the machine.
type runFlags struct {
	machineFlags
	report  string
	verbose bool
}

func newRun() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run [flags]",
		Short: "Boot a kernel in a virtual machine",
		Long:  runLong + "\n\nExit codes:\n" + runExitCodes,
		Example: `  vole run
  vole run -k vmlinuz -i initrd.img -m 1G -c 2 -a 'quiet single'
  vole run -k vmlinuz -i initrd.img --disk root.img,cow -a 'root=/dev/vda rw'
  vole run -k vmlinuz -i initrd.img --timeout 60s --report run.json </dev/null >console.log`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return f.run() },
	}
	f.machineFlags.add(cmd)
	onceString(cmd.Flags(), &f.report, "report", "FILE", "write what happened when: JSON if the name ends in .json, a picture if in .svg, else text; - is stderr")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "say more on stderr")
	completeFiles(cmd, "report")
	cmd.Flags().SortFlags = false
	return cmd
}

// run runs one machine, or several with --on-reset restart.
func (f *runFlags) run() error {
	machine, cfg, err := f.machine()
	if err != nil {
		return err
	}
	for _, share := range machine.Shares {
		if share.At != "" {
			return &usageError{fmt.Errorf("--share: %s: at is for exec: the guest of run mounts it by itself", share.Dir)}
		}
	}
	ignoreStops()
	s := &session{
		command: "run",
		cfg:     cfg,
		machine: machine,
		restart: machine.Restart(),
		console: outputFile{flag: "console", path: machine.Console},
		report:  newReport(f.report),
		started: processStart(),
	}
	if s.console.path == "" {
		s.term = openTerminal(int(os.Stdin.Fd()))
	}
	s.stderr = newLineWriter(os.Stderr, s.term)
	defer s.stderr.close()
	if err := f.complete(s); err != nil {
		return err
	}
	if s.builtin != nil {
		defer s.builtin.Close()
	}
	return s.run()
}

// complete fills in what was not said: the kernel, the initrd, the cache and the logger.
func (f *runFlags) complete(s *session) error {
	if err := s.complete(f.verbose); err != nil {
		return err
	}
	if s.cfg.Initrd == "" && len(s.machine.Disks) == 0 {
		// Not os.Executable: this one is still there when the file has been replaced.
		archive, err := guest.Archive("/proc/self/exe")
		if err != nil {
			// What is wrong with what the user gave comes first.
			if bad := s.cfg.Validate(); bad != nil {
				return bad
			}
			return fmt.Errorf("the built-in guest: %w; give --initrd", err)
		}
		s.builtin, s.cfg.Initrds = archive, []boot.Image{archive}
	}
	return nil
}

// complete fills in what was not said: the kernel, the cache and the logger.
func (s *session) complete(verbose bool) error {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	s.log = slog.New(slog.NewTextHandler(s.stderr, &slog.HandlerOptions{Level: level}))
	s.cfg.Logger = s.log
	s.cfg.Epoch = s.started
	if s.cfg.Kernel == "" {
		k, err := kernel.Default()
		if err != nil {
			return &usageError{fmt.Errorf("--kernel is not given and there is none to take instead: %w", err)}
		}
		s.cfg.Kernel = k.Path
	}
	if s.cfg.Boot != vmm.BootBzImage {
		// A machine boots without a cache too.
		cache, err := kernel.NewCache("")
		if err != nil {
			s.log.Info("no cache of unpacked kernels", "reason", err)
		}
		s.cfg.Cache = cache
	}
	return nil
}
