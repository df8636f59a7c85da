/*
 * The C peer of the kvm package's exit benchmarks: a guest that exits for ever,
 * and the smallest loop around KVM_RUN. Prints nanoseconds an exit,
 * of elapsed and of processor time.
 *
 * usage: cexit port|mmio EXITS
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#define RAM 0x10000
#define CODE 0x1000
#define MMIO 0xc0000000

static const unsigned char port_loop[] = {
	0xba, 0xf8, 0x03, /* mov dx, 0x3f8 */
	0xee,             /* out dx, al */
	0xeb, 0xfd,       /* jmp -3 */
};

static const unsigned char mmio_loop[] = {
	0xa2, 0x10, 0x00, /* mov [0x10], al */
	0xeb, 0xfb,       /* jmp -5 */
};

static int check(int r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

static void *map(int fd, size_t n, int flags)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return p;
}

static double now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: cexit port|mmio EXITS\n");
		return 2;
	}
	int mmio = strcmp(argv[1], "mmio") == 0;
	long exits = atol(argv[2]);
	unsigned want = mmio ? KVM_EXIT_MMIO : KVM_EXIT_IO;

	int sys = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = check(ioctl(sys, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	char *ram = map(-1, RAM, MAP_PRIVATE | MAP_ANONYMOUS);
	if (mmio)
		memcpy(ram + CODE, mmio_loop, sizeof mmio_loop);
	else
		memcpy(ram + CODE, port_loop, sizeof port_loop);

	struct kvm_userspace_memory_region region = {
		.memory_size = RAM,
		.userspace_addr = (uintptr_t)ram,
	};
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	int cpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = check(ioctl(sys, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = map(cpu, size, MAP_SHARED);

	struct kvm_sregs sregs;
	check(ioctl(cpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = MMIO;
	check(ioctl(cpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	check(ioctl(cpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	unsigned sum = 0;
	double start = now(CLOCK_MONOTONIC), cpu_start = now(CLOCK_THREAD_CPUTIME_ID);
	for (long i = 0; i < exits;) {
		if (ioctl(cpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR)
				continue;
			perror("KVM_RUN");
			return 1;
		}
		if (run->exit_reason != want) {
			fprintf(stderr, "exit reason %u\n", run->exit_reason);
			return 1;
		}
		sum += mmio ? run->mmio.data[0] : *((unsigned char *)run + run->io.data_offset);
		i++;
	}
	double cpu_ns = (now(CLOCK_THREAD_CPUTIME_ID) - cpu_start) / exits;
	double ns = (now(CLOCK_MONOTONIC) - start) / exits;
	if (sum == 12345)
		fprintf(stderr, "unlikely\n"); /* keeps the reads */
	printf("%.1f %.1f\n", ns, cpu_ns);
	return 0;
}
