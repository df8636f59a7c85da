package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/testdata/nested"
)

// rootRecipe changes with what goes into the image besides the packages.
func rootRecipe() string {
	sum := sha256.Sum256([]byte(fmt.Sprint(rootPackages, unwanted, masked, rootFiles, mounts, second)))
	return hex.EncodeToString(sum[:])[:12]
}

// errNotBuilt says that a component can't be made of its packages here. The
// tests that need it say so; the next run tries again.
var errNotBuilt = errors.New("it can't be made here")

// configureTimeout bounds the maintainer scripts of all packages.
const configureTimeout = 10 * time.Minute

// rootImage is the image in the component's directory.
const rootImage = "root.img"

// rootPackages are what apt is asked for: what every Debian has, systemd with
// what a login needs, and the package which says that /usr is merged, in place
// of the one that merges it (and brings Perl).
var rootPackages = []string{
	"?and(?essential,?architecture(amd64))", "usr-is-merged",
	"systemd-sysv", "udev", "dbus", "libpam-systemd", "login", "passwd", "mount", "kmod", "procps",
}

// unwanted are the files of packages that a test does without, as dpkg's and
// tar's patterns have them.
var unwanted = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
	"/usr/share/lintian/*", "/usr/share/bug/*", "/usr/lib/udev/hwdb.d/*", "/lib/udev/hwdb.d/*",
}

// masked are units that take time at a boot, or later, and that no test needs.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer",
	"e2scrub_all.timer", "e2scrub_reap.service", "systemd-networkd-wait-online.service",
	"systemd-tmpfiles-clean.timer", "systemd-pstore.service", "systemd-journal-flush.service",
	// The root has no modules, and nothing in it uses these file systems.
	"modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@fuse.service",
	"modprobe@loop.service", "modprobe@efi_pstore.service", "dev-hugepages.mount", "dev-mqueue.mount",
	"sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount",
	"getty@tty1.service", // there is no screen
}

// rootFiles is what the installed system gets besides its packages. The unit
// leaves a word of the kernel's command line on the disk, for the test.
var rootFiles = []struct{ path, text string }{
	{"etc/hostname", "vole\n"},
	{"etc/hosts", "127.0.0.1 localhost vole\n"},
	{"etc/fstab", "/dev/vda / ext4 defaults 0 0\n"},
	{"etc/systemd/journald.conf.d/volatile.conf", "[Journal]\nStorage=volatile\n"},
	{"etc/systemd/system/vole-word.service", `[Unit]
Description=Keep the word given at boot
ConditionKernelCommandLine=vole.word

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sed "s/.*vole.word=\\([^ ]*\\).*/\\1/" /proc/cmdline > /var/lib/vole-word'

[Install]
WantedBy=multi-user.target
`},
}

// second is what debootstrap calls the second stage, within the new root: the
// packages, which lie in /debs and whose files are there already, are installed
// by dpkg, those first without which no other's script works.
const second = `set -e
dpkg --force-depends --force-unsafe-io --install /debs/base-passwd_*.deb
dpkg --force-depends --force-unsafe-io --install /debs/base-files_*.deb
dpkg --force-depends --force-unsafe-io --unpack /debs/*.deb
dpkg --force-unsafe-io --configure -a
test -z "$(dpkg --audit)"
systemctl enable vole-word.service
passwd -d root
`

// mounts goes before second where it has a namespace of its own for mounts, so
// that nothing stays mounted. Most scripts do without.
const mounts = `mount -t proc proc /proc && mount -t sysfs sysfs /sys
`

// buildRoot makes the image of a Debian system in dir: the packages are unpacked
// and configured in a chroot, as debootstrap does it, which takes root's rights.
func buildRoot(ctx context.Context, debs []string, dir string) error {
	tree := filepath.Join(dir, "tree")
	defer os.RemoveAll(tree)
	if err := makeTree(ctx, debs, tree); err != nil {
		return err
	}
	out, err := configure(ctx, tree, true)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) {
		out, err = configure(ctx, tree, false) // no namespaces for us: a container, say
	}
	if err != nil {
		err = fmt.Errorf("%w: configure the packages: %w", errNotBuilt, err)
		if out != "" {
			err = fmt.Errorf("%w: %s", err, lastLines(out, 5))
		}
		return err
	}
	if err := finishTree(tree); err != nil {
		return err
	}
	return makeImage(ctx, tree, filepath.Join(dir, rootImage), rootSpare, rootInodes)
}

// makeTree is debootstrap's first stage: the files of all packages, and what
// their scripts find where there is no system yet.
func makeTree(ctx context.Context, debs []string, tree string) error {
	for _, d := range []string{"dev", "proc", "sys", "debs", "etc/dpkg/dpkg.cfg.d", "var/lib/dpkg", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return fmt.Errorf("create a root directory: %w", err)
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(tree, d)); err != nil {
			return fmt.Errorf("create a root directory: %w", err)
		}
	}
	for _, n := range []struct {
		name  string
		minor uint32
	}{{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}} {
		path := filepath.Join(tree, "dev", n.name)
		err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, n.minor)))
		if err == nil {
			err = os.Chmod(path, 0o666)
		}
		if err != nil {
			return fmt.Errorf("%w: create a device: %w", errNotBuilt, err)
		}
	}
	// tar as dpkg runs it would replace the links by directories.
	const unpack = `deb=$1; shift; dpkg-deb --fsys-tarfile "$deb" | tar -x -p --keep-directory-symlink -f - "$@"`
	for _, deb := range debs {
		args := []string{"-c", unpack, "sh", deb, "-C", tree}
		for _, pattern := range unwanted {
			args = append(args, "--exclude=."+pattern)
		}
		if _, err := command(ctx, unpackTimeout, "", "sh", args...); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
		if err := os.Rename(deb, filepath.Join(tree, "debs", filepath.Base(deb))); err != nil {
			return fmt.Errorf("bring in a package: %w", err)
		}
	}
	links := []struct{ target, path string }{{"dash", "usr/bin/sh"}, {"mawk", "usr/bin/awk"}}
	for _, l := range links {
		if err := os.Symlink(l.target, filepath.Join(tree, l.path)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create a link: %w", err)
		}
	}
	files := []struct {
		path, text string
		perm       os.FileMode
	}{
		{"var/lib/dpkg/status", "", 0o644},
		{"var/lib/dpkg/available", "", 0o644},
		{"etc/dpkg/dpkg.cfg.d/vole", "path-exclude=" + strings.Join(unwanted, "\npath-exclude=") + "\n", 0o644},
		// No service starts while packages are configured.
		{"usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755},
	}
	for _, f := range files {
		if err := writeNew(filepath.Join(tree, f.path), f.text, f.perm); err != nil {
			return err
		}
	}
	for _, f := range rootFiles {
		if err := writeNew(filepath.Join(tree, f.path), f.text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeNew writes a file with its directory.
func writeNew(path, text string, perm os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write a file of the root: %w", err)
	}
	if err := os.WriteFile(path, []byte(text), perm); err != nil {
		return fmt.Errorf("write a file of the root: %w", err)
	}
	return nil
}

// configure runs the second stage in the tree and returns what it said. In
// namespaces of its own it can neither leave a process nor a mount behind, and
// reaches no network.
func configure(ctx context.Context, tree string, namespaces bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, configureTimeout)
	defer cancel()
	script := second
	if namespaces {
		script = mounts + second
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C",
		"DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true",
	}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: tree}
	if namespaces {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS // which also keeps mounts from spreading
	}
	out, err := cmd.CombinedOutput()
	if ctx.Err() == context.DeadlineExceeded {
		err = fmt.Errorf("it did not end within %v", configureTimeout)
	}
	return string(out), err
}

// finishTree removes what only the second stage needed, and masks units.
func finishTree(tree string) error {
	for _, path := range []string{"debs", "usr/sbin/policy-rc.d", "var/cache", "var/log", "var/lib/apt/lists", "dev"} {
		if err := os.RemoveAll(filepath.Join(tree, path)); err != nil {
			return fmt.Errorf("clean the root: %w", err)
		}
	}
	for _, d := range []string{"var/cache", "var/log", "dev"} {
		if err := os.Mkdir(filepath.Join(tree, d), 0o755); err != nil {
			return fmt.Errorf("clean the root: %w", err)
		}
	}
	for _, unit := range masked {
		err := os.Symlink("/dev/null", filepath.Join(tree, "etc/systemd/system", unit))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("mask a unit: %w", err)
		}
	}
	return nil
}

// What a boot of the root may write, and the journal.
const (
	rootSpare  = 48 << 20
	rootInodes = 2000
)

// makeImage writes the tree into an ext4 image with spare bytes and inodes. It is
// no larger than it must be: an emulated host has all of it in memory.
func makeImage(ctx context.Context, tree, image string, spare, inodes int64) error {
	const (
		block   = 4 << 10
		inode   = 256
		percent = 3 // for what the file system needs itself
	)
	var size, files int64
	err := filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		files++
		size += (st.Size() + block - 1) / block * block
		return nil
	})
	if err != nil {
		return fmt.Errorf("measure %s: %w", tree, err)
	}
	files += inodes
	size += files*inode + spare
	size += size * percent / 100
	cmd, err := nested.ProgramCommand(ctx, nested.ComponentExt, "sbin/mke2fs",
		"-q", "-F", "-t", "ext4", "-b", fmt.Sprint(block), "-N", fmt.Sprint(files), "-m", "0", "-L", strings.TrimSuffix(filepath.Base(image), ".img"),
		"-d", tree, image, fmt.Sprint(size/block))
	if err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the file system: %w: %s", err, lastLines(string(out), 3))
	}
	return nil
}

// lastLines are the last n lines of s, in one.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
