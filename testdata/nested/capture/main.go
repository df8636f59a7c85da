// Command capture makes the moving pictures of a terminal that the README shows.
//
//	go run ./testdata/nested/capture -vole bin/vole -out docs/pictures docs/pictures/*.txt
//
// A script, NAME.txt, is a list of commands:
//
//	# a comment
//	title: what stands above the picture
//	$ vole exec -- uname -r
//	$ vole exec -- false
//	= 1
//
// They are typed at a prompt in a pseudo-terminal of 88x24 ("rows: N" for another height), one
// after the other,
// and what really comes out of it is recorded with its times, in the form of
// asciicast v2. "= CODE" is what the command before must end with (without it: 0);
// one that ends otherwise makes no picture. "$?" is the code of the command
// before; nothing else lasts from one to the next.
//
// The recording is played on a terminal ([Screen]) that remembers what scrolls
// away, and drawn as one SVG, NAME.svg, that CSS moves: no script, no font, nothing
// loaded. It rests at the end and begins anew. Where there are no animations it is the
// last screen. Waits are shortened, and the caption says so.
//
// Where /dev/kvm can't boot a stock kernel the commands run in the emulated host
// of package nested, with busybox for the machine's own commands. The
// kernel is the newest of the tests' stock kernels, and is there as if "vole
// kernel pull" had fetched it; where vole can read the running kernel's image, it
// prefers that. A picture that would show this machine's name or paths is not
// written.
//
// It leaves out all that these pictures don't need: input other than the commands,
// wide characters, 256 colours.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/testdata/nested"
)

// How times are shortened, in seconds.
const (
	longestWait    = 1
	longestCommand = 4
)

// largest is the largest picture, in bytes.
const largest = 60 << 10

func main() {
	nested.RunIfInit()
	var s Stage
	var out string
	var always, record bool
	flag.StringVar(&s.Vole, "vole", "bin/vole", "the vole binary")
	flag.StringVar(&out, "out", ".", "the directory for the pictures")
	flag.BoolVar(&always, "always", false, "use the emulated host although /dev/kvm could boot a stock kernel")
	flag.BoolVar(&record, "record", false, "only record, here, and write the recordings to stdout")
	flag.StringVar(&s.Kernel, "kernel", "", "the kernel (default: the newest of the tests')")
	flag.StringVar(&s.Busybox, "busybox", "", "a busybox to take the commands from (default in the emulated host: the tests')")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: capture [flags] SCRIPT...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := capture(ctx, s, flag.Args(), out, always, record); err != nil {
		fmt.Fprintln(os.Stderr, "capture:", err)
		os.Exit(1)
	}
}

func capture(ctx context.Context, s Stage, paths []string, out string, always, record bool) error {
	why := nested.CannotBoot()
	emulate := !record && (always || why != "")
	asset := ""
	if s.Kernel == "" {
		k, err := newestKernel()
		if err != nil {
			return err
		}
		s.Kernel, asset = k.Image, k.Name
	}
	for _, path := range []*string{&s.Vole, &s.Kernel, &s.Busybox} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	scripts := make([]Script, len(paths))
	for i, path := range paths {
		var err error
		if scripts[i], err = readScript(path); err != nil {
			return err
		}
	}
	var casts []Cast
	var err error
	if emulate {
		casts, err = s.recordEmulated(ctx, paths, asset)
	} else {
		casts, err = s.recordHere(ctx, scripts)
	}
	if err != nil {
		return err
	}
	if record {
		for i := range casts {
			if err := casts[i].writeTo(os.Stdout); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range casts {
		if err := write(&casts[i], out, emulate); err != nil {
			return err
		}
	}
	return nil
}

// newestKernel is the newest of the tests' kernels, those of clouds first, which
// boot sooner.
func newestKernel() (nested.Kernel, error) {
	all, err := nested.Kernels()
	if err != nil {
		return nested.Kernel{}, err
	}
	if len(all) == 0 {
		return nested.Kernel{}, fmt.Errorf("no kernel: %w; `make deps` fetches some", nested.ErrNotFetched)
	}
	return slices.MaxFunc(all, func(a, b nested.Kernel) int {
		cloud := func(k nested.Kernel) int { return strings.Count(k.Name, "-cloud") }
		return cmp.Or(cmp.Compare(cloud(a), cloud(b)), kernel.CompareVersions(a.Release, b.Release))
	}), nil
}

// recordHere records the scripts on this machine.
func (s *Stage) recordHere(ctx context.Context, scripts []Script) ([]Cast, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.warmUp(ctx); err != nil {
		return nil, err
	}
	words := machineWords(s)
	var casts []Cast
	for _, script := range scripts {
		c, err := s.record(ctx, script)
		if err == nil {
			err = c.check(words)
		}
		if err != nil {
			return nil, err
		}
		casts = append(casts, c)
	}
	return casts, nil
}

// recordEmulated has this program record the scripts in an emulated host. The
// kernel is an asset, or a file if that is "".
func (s *Stage) recordEmulated(ctx context.Context, paths []string, asset string) ([]Cast, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := nested.Command{
		Files:  append([]string{s.Vole, s.Kernel}, paths...),
		Stderr: os.Stderr,
		Note:   func(text string) { fmt.Fprintln(os.Stderr, "capture:", text) },
	}
	if asset != "" {
		c.Assets = append(c.Assets, nested.AssetDrivers+strings.TrimPrefix(asset, "kernel"))
	}
	busybox := s.Busybox
	if busybox == "" {
		if busybox, err = nested.Asset(nested.AssetBusybox); err != nil {
			return nil, err
		}
	}
	c.Files = append(c.Files, busybox)
	c.Args = append([]string{self, "-record", "-vole", s.Vole, "-kernel", s.Kernel, "-busybox", busybox}, paths...)
	for again := true; ; again = false {
		var stdout bytes.Buffer
		c.Stdout = &stdout
		res, err := c.Run(ctx)
		switch {
		case again && errors.Is(err, nested.ErrHost) && ctx.Err() == nil:
			c.Note(err.Error() + "; once more in a fresh one")
			continue
		case err != nil:
			return nil, err
		case res.Code != 0:
			return nil, fmt.Errorf("the recording in the emulated host ended with code %d", res.Code)
		}
		casts, err := readCasts(&stdout)
		if err != nil {
			return nil, err
		}
		for i := range casts {
			if err := casts[i].check(machineWords(s)); err != nil {
				return nil, err
			}
		}
		return casts, nil
	}
}

// machineWords are names and paths of this machine that no picture may show.
func machineWords(s *Stage) []string {
	var words []string
	add := func(w string) {
		// What is this short, or names no machine, is a part of other words.
		if len(w) > 3 && w != "localhost" && w != "/root" && !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	name, _ := os.Hostname()
	if name != "(none)" { // the emulated host has none
		add(name)
	}
	home, _ := os.UserHomeDir()
	dir, _ := os.Getwd()
	cache, _ := nested.CacheDir()
	for _, w := range []string{home, dir, cache, s.dir, filepath.Dir(s.Vole), filepath.Dir(s.Kernel), os.TempDir() + "/"} {
		add(w)
	}
	return words
}

// write draws a recording into a file.
func write(c *Cast, dir string, emulated bool) error {
	caption := ""
	if c.compress(longestWait, longestCommand) {
		caption = "waits shortened"
	}
	if emulated {
		caption = "times of an emulated host, compressed"
	}
	var b bytes.Buffer
	if err := draw(&b, c, caption); err != nil {
		return err
	}
	path := filepath.Join(dir, c.Name+".svg")
	if b.Len() > largest {
		return fmt.Errorf("%s would have %d bytes, more than %d", path, b.Len(), largest)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %d bytes, %.0f s\n", path, b.Len(), c.Events[len(c.Events)-1].Time)
	return nil
}
