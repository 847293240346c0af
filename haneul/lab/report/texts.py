"""Every text of the report, in English and in Korean, in one table. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from haneul.lab.workloads import Column, Group
from haneul.model.generation import WAYS, Technique, Way


@dataclass(frozen=True)
class Text:
    en: str
    ko: str

    def of(self, **values: object) -> Text:
        """With the values in their places; a value that is a `Text` gives each language its own."""

        def mine(language: str) -> dict[str, object]:
            return {name: getattr(one, language) if isinstance(one, Text) else one for name, one in values.items()}

        return Text(self.en.format(**mine("en")), self.ko.format(**mine("ko")))


def same(text: str) -> Text:
    """What needs no translation: names, numbers."""
    return Text(text, text)


def joined(parts: list[Text], between: str = ", ") -> Text:
    return Text(between.join(one.en for one in parts), between.join(one.ko for one in parts))


# --- names ---------------------------------------------------------------------------------------------

WAY: dict[Way, Text] = {
    "metal": Text("bare metal", "베어메탈"),
    "emulated": Text("emulated", "완전 에뮬레이션"),
    "emulated-fast": Text("emulated, fast devices", "에뮬레이션 + virtio 장치"),
    "paravirtual": Text("paravirtual", "반가상화"),
    "hvm": Text("HVM", "하드웨어 가상화(HVM)"),
}
#: How the way is told apart in one line.
WAY_HOW: dict[Way, Text] = {
    "metal": Text("The server itself, without virtualization", "가상화 없이 서버에서 그대로 실행"),
    "emulated": Text(
        "Every part in software: the CPU translated (QEMU TCG), disk IDE, network e1000",
        "모든 부품을 소프트웨어로 흉내 냄: CPU는 명령어 번역(QEMU TCG), 디스크는 IDE, 네트워크는 e1000",
    ),
    "emulated-fast": Text(
        "The CPU translated (QEMU TCG); disk and network by virtio, which knows that they are virtual",
        "CPU는 명령어 번역(QEMU TCG), 디스크와 네트워크는 가상임을 아는 virtio",
    ),
    "paravirtual": Text(
        "The guest's kernel is a program of the server (User-mode Linux) and asks it",
        "게스트 커널이 서버의 프로그램으로 실행되며(User-mode Linux) 서버에 일을 부탁함",
    ),
    "hvm": Text(
        "The CPU itself runs the guest (KVM); disk and network by virtio",
        "CPU가 게스트를 직접 실행(KVM), 디스크와 네트워크는 virtio",
    ),
}


def way_name(way: Way) -> Text:
    return WAY.get(way) or same(WAYS[way].title)


WORKLOAD: dict[str, Text] = {
    "boot": Text("boot", "부팅"),
    "registers": Text("arithmetic in registers", "레지스터 연산 루프"),
    "integer": Text("integers: sorting", "정수 연산: 정렬"),
    "floating": Text("floating-point loop", "부동소수점 연산 루프"),
    "sha256": Text("SHA-256", "SHA-256 해시"),
    "primes": Text("primes (sysbench)", "소수 계산(sysbench)"),
    "memory": Text("memory, three arrays", "메모리 대역폭(배열 3개)"),
    "memory-blocks": Text("memory blocks (sysbench)", "메모리 블록 쓰기(sysbench)"),
    "page-fault": Text("page fault", "페이지 폴트"),
    "getppid": Text("system call: getppid", "시스템 호출: getppid"),
    "read": Text("system call: 1-byte read", "시스템 호출: 1바이트 read"),
    "switch": Text("context switch", "문맥 교환"),
    "pipe": Text("pipe ping-pong", "파이프 핑퐁"),
    "fork": Text("new process: fork", "프로세스 생성: fork"),
    "exec": Text("new program: fork + exec", "프로그램 실행: fork + exec"),
    "timer": Text("timer: how late", "타이머 지연"),
    "disk-sync": Text("disk: 4 KiB sync writes", "디스크: 4KiB 동기 쓰기"),
    "disk-write": Text("disk: sequential write", "디스크: 순차 쓰기"),
    "disk-read": Text("disk: sequential read", "디스크: 순차 읽기"),
    "net-latency": Text("network: round trip", "네트워크: 왕복 지연"),
    "net-in": Text("network: to the guest", "네트워크: 게스트로 수신"),
    "net-out": Text("network: from the guest", "네트워크: 게스트에서 송신"),
    "compile": Text("compile C (gcc -O2)", "C 컴파일(gcc -O2)"),
}
#: What is done, in a line.
WORKLOAD_WHAT: dict[str, Text] = {
    "registers": Text("xorshift64*: each step needs the one before; per step", "xorshift64*: 앞 단계 결과가 있어야 다음 단계로 진행, 단계당 시간"),
    "integer": Text("insertion sort of 64 numbers; per number", "숫자 64개 삽입 정렬, 숫자당 시간"),
    "floating": Text("the logistic map in double precision; per step", "배정밀도 로지스틱 맵, 단계당 시간"),
    "sha256": Text("plain C, 16 KiB at a time", "순수 C 구현, 16KiB 단위"),
    "primes": Text("sysbench cpu, one thread", "sysbench cpu, 스레드 1개"),
    "memory": Text("a = b + 3c over 3 × 32 MiB: beyond the caches", "a = b + 3c, 32MiB 배열 3개로 캐시 범위를 벗어남"),
    "memory-blocks": Text("sysbench memory, writes of 1 MiB", "sysbench memory, 1MiB 쓰기"),
    "page-fault": Text("first touch of a 4 KiB page of new memory", "새 메모리의 4KiB 페이지를 처음 건드리는 시간"),
    "getppid": Text("the least that a kernel can be asked", "커널에 할 수 있는 가장 작은 요청"),
    "read": Text("one byte of /dev/zero", "/dev/zero에서 1바이트"),
    "switch": Text("two processes on one CPU hand over by futex; per hand-over", "CPU 하나에서 두 프로세스가 futex로 차례를 넘김, 1회당"),
    "pipe": Text("one byte to another process and back", "다른 프로세스에 1바이트를 보내고 돌려받음"),
    "fork": Text("fork, exit, wait", "fork, exit, wait"),
    "exec": Text("fork, exec of a static program, wait", "fork 후 정적 프로그램 exec, wait"),
    "timer": Text("how much later than asked a sleep of 1 ms ends", "1ms sleep이 요청보다 늦게 끝난 정도"),
    "disk-sync": Text("fio: random 4 KiB, each on the disk before the next", "fio: 임의 위치 4KiB, 매번 디스크에 기록될 때까지 대기"),
    "disk-write": Text("fio: 256 MiB in blocks of 1 MiB, with the last fsync", "fio: 1MiB 블록으로 256MiB, 마지막 fsync 포함"),
    "disk-read": Text(
        "fio: 256 MiB that the server has in memory: the way through the virtual disk",
        "fio: 서버 메모리에 있는 256MiB를 읽어 가상 디스크 경로만 측정",
    ),
    "net-latency": Text("one byte by TCP, server to guest and back", "TCP로 1바이트, 서버와 게스트 사이 왕복"),
    "net-in": Text("iperf3, one TCP stream, server to guest", "iperf3, TCP 스트림 1개, 서버에서 게스트로"),
    "net-out": Text("iperf3, one TCP stream, guest to server", "iperf3, TCP 스트림 1개, 게스트에서 서버로"),
    "compile": Text("the compiler proper on one preprocessed file", "전처리된 파일 하나를 컴파일러 본체로 번역"),
}  # fmt: skip
GROUP: dict[Group, Text] = {
    "computing": Text("Computing", "연산"),
    "memory": Text("Memory", "메모리"),
    "kernel": Text("System calls and processes", "시스템 호출과 프로세스"),
    "time": Text("Time", "시간"),
    "disk": Text("Disk", "디스크"),
    "network": Text("Network", "네트워크"),
    "work": Text("Work", "실제 작업"),
}
COLUMN: dict[Column, Text] = {
    "cpu": Text("computing", "연산"),
    "kernel": Text("system calls, processes", "시스템 호출, 프로세스"),
    "memory": Text("memory", "메모리"),
    "interrupts": Text("interrupts, timers", "인터럽트, 타이머"),
    "disk": Text("disk", "디스크"),
    "network": Text("network", "네트워크"),
}
TECHNIQUE: dict[Technique, Text] = {
    "software": Text("software", "소프트웨어"),
    "paravirtual": Text("paravirtual", "반가상화"),
    "hardware": Text("hardware", "하드웨어"),
    "bare": Text("bare", "직접"),
}
#: How a kernel comes to run (`Axes.boot`); what is not here is told in English.
BOOT: dict[str, Text] = {
    "firmware": Text("firmware", "펌웨어"),
    "BIOS, the disk's boot record": Text("BIOS, the disk's boot record", "BIOS, 디스크의 부트 레코드"),
    "BIOS, or a kernel given": Text("BIOS, or a kernel given", "BIOS 또는 지정된 커널"),
    "a kernel given": Text("a kernel given", "지정된 커널"),
}
PHASE: dict[str, Text] = {
    "api": Text("API call", "API 호출"),
    "server": Text("server prepares", "서버 준비"),
    "firmware": Text("firmware, boot loader", "펌웨어, 부트 로더"),
    "kernel": Text("kernel", "커널"),
    "services": Text("init and services", "init과 서비스"),
    "guest": Text("the guest’s boot", "게스트 부팅"),
    "login": Text("first SSH login", "첫 SSH 로그인"),
}

# --- the page ------------------------------------------------------------------------------------------

PAGE: dict[str, Text] = {
    "title": Text("One image, every generation of virtualization", "하나의 이미지, 모든 세대의 가상화"),
    "subtitle": Text(
        "The image {image} was launched under each generation that this server offers. The same programs ran in each "
        "guest and on the server itself.",
        "이 서버가 제공하는 모든 가상화 세대로 {image} 이미지를 기동하고, 각 게스트와 서버 자체에서 같은 프로그램을 실행했습니다.",
    ),
    "measured": Text("measured here", "여기서 측정"),
    "public": Text("published elsewhere", "외부 공개 수치"),
    "absent": Text("not available here", "이 서버에서는 사용 불가"),
    "failed": Text("not measured", "측정하지 못함"),
    "incomplete": Text("in part: {reason}", "일부만 측정: {reason}"),
    "baseline": Text("the baseline", "기준"),
    "slower": Text("times slower than bare metal", "베어메탈 대비 느려진 배수"),
    "boot": Text("boot", "부팅"),
    "to-ssh": Text("to SSH", "SSH까지"),
    "chart": Text("Slowdown over bare metal", "베어메탈 대비 느려진 정도"),
    "chart-how": Text(
        "Each mark is the median of all samples; the line through it reaches over their middle half. The axis is logarithmic: "
        "each step to the right multiplies. Left of 1 is faster than the bare server.",
        "표식은 모든 표본의 중앙값이고, 가로선은 표본의 가운데 절반이 놓인 범위입니다. 축은 로그 눈금이므로 오른쪽으로 갈수록 "
        "곱으로 커집니다. 1보다 왼쪽은 베어메탈보다 빠르다는 뜻입니다.",
    ),
    "boots": Text("From RunInstances to SSH", "RunInstances 호출부터 SSH 접속까지"),
    "boots-how": Text(
        "One boot of each generation, the one in the middle of its runs; the range of all of them beside the total. The server "
        "itself is not restarted.",
        "세대마다 여러 번의 부팅 가운데 중앙값에 해당하는 한 번을 그렸고, 합계 옆에 전체 범위를 적었습니다. 서버 자체는 다시 시작하지 않습니다.",
    ),
    "axes": Text(
        "The axes: what is virtualized how, and what that costs",
        "축으로 보기: 무엇을 어떻게 가상화하고, 그 비용은 얼마인가",
    ),
    "axes-how": Text(
        "The word says how a part is virtualized; the number how many times slower than bare metal it was here (geometric mean "
        "of its workloads); the colour is the number.",
        "글자는 그 부품을 가상화하는 방식, 숫자는 여기서 측정한 느려진 배수(해당 작업들의 기하 평균)입니다. 색은 숫자를 나타냅니다.",
    ),
    "cpu": Text("CPU", "CPU"),
    "why": Text("Why a generation costs what it costs here", "각 세대의 비용은 왜 이만큼인가"),
    "agreement": Text("Does the order of costs agree with the literature?", "비용의 순서는 문헌과 일치하는가?"),
    "claim": Text("what is said", "알려진 내용"),
    "source": Text("who says so", "출처"),
    "here": Text("here", "여기서는"),
    "verdict": Text("verdict", "판정"),
    "published": Text("Published figures, for comparison only", "비교용 외부 공개 수치"),
    "published-how": Text(
        "Taken on other machines, at other times, by other methods. None of them is in a figure, a colour or a mean above.",
        "다른 장비에서, 다른 시기에, 다른 방법으로 얻은 값입니다. 위의 그림, 색, 평균에는 전혀 들어 있지 않습니다.",
    ),
    "recalled": Text("recalled, not looked up", "기억에 의한 값, 원문 미확인"),
    "verified": Text("read in the source", "원문 확인"),
    "figures": Text("All figures", "전체 측정값"),
    "figures-how": Text(
        "Median of all samples, and below it their quartiles (with fewer than four samples the least and the most). "
        "≈: a fixed loop on the server took over {percent} % longer than usual beside at least one run.",
        "모든 표본의 중앙값이며, 아래는 사분위 범위입니다(표본이 4개 미만이면 최솟값과 최댓값). "
        "≈는 적어도 한 번의 측정 전후에 서버의 고정 루프가 평소보다 {percent}% 넘게 오래 걸렸다는 표시입니다.",
    ),
    "not-run": Text("not run", "실행 안 됨"),
    "method": Text("How this was measured", "측정 방법"),
    "machine": Text("Machine and versions", "장비와 버전"),
    "guests": Text("What the guests say of themselves", "게스트가 스스로 보고한 내용"),
    "loopback": Text("bare metal: over the loopback interface", "베어메탈: 루프백 인터페이스"),
    "workload": Text("workload", "작업"),
    "unit": Text("unit", "단위"),
    "language": Text("Language", "언어"),
    "again": Text("Command", "명령"),
}

METHOD: tuple[Text, ...] = (
    Text(
        "A run goes over all generations before the next begins, and boots each of them anew: {runs} runs. Guests have one vCPU; "
        "on the server itself the programs are held to one processor.",
        "한 회차에서 모든 세대를 차례로 측정한 뒤 다음 회차로 넘어가며, 회차마다 새로 부팅합니다({runs}회). 게스트의 vCPU는 1개이고, "
        "서버에서는 프로그램을 프로세서 하나에 고정합니다.",
    ),
    Text(
        "The very same files run everywhere: haneul-bench (a static C program), sysbench, fio, iperf3 and gcc's compiler proper, on "
        "the server with the image's own libraries.",
        "어디서나 같은 파일을 실행합니다: haneul-bench(정적 C 프로그램), sysbench, fio, iperf3, gcc 컴파일러 본체. "
        "서버에서도 이미지에 든 라이브러리를 사용합니다.",
    ),
    Text(
        "Before and after each workload a fixed loop of integers runs on the server. Where it took more than {percent} % longer than "
        "usual the run counts as disturbed: {disturbed} of {total}.",
        "작업 전후에 서버에서 고정된 정수 루프를 실행합니다. 평소보다 {percent}% 넘게 오래 걸렸다면 방해받은 측정으로 봅니다: 전체 {total}건 중 {disturbed}건.",
    ),
    Text(
        "Network: between the server and the guest, through haneul's network; for bare metal, over the loopback interface, which is "
        "no network: read those factors as “against nothing at all”.",
        "네트워크: 서버와 게스트 사이를 haneul의 네트워크로 측정합니다. 베어메탈은 실제 네트워크가 아닌 루프백으로 잰 값이므로 배수는 "
        "“네트워크가 아예 없을 때와의 비교”로 읽어야 합니다.",
    ),
    Text(
        "Disk: a guest's disk is a file of the server. Writes are counted when they are on the server's disk; the sequential read "
        "is of what the server has in memory.",
        "디스크: 게스트의 디스크는 서버의 파일입니다. 쓰기는 서버의 디스크에 기록되어야 완료로 치고, 순차 읽기는 서버 메모리에 있는 내용을 읽습니다.",
    ),
)

#: Warnings at the head of the page.
WARNING: dict[str, Text] = {
    "guest": Text(
        "This server is itself a virtual machine ({what}). “Bare metal” is what haneul finds: its own costs are in every figure.",
        "이 서버 자체가 가상 머신입니다({what}). 여기서 “베어메탈”은 haneul이 사용할 수 있는 서버를 뜻하며, 그 가상화 비용이 모든 값에 들어 있습니다.",
    ),
    "fallback": Text(
        "There is no usable KVM here: HVM types ran emulated with fast devices, and are shown as such.",
        "이 서버에서는 KVM을 쓸 수 없어 HVM 인스턴스가 virtio 장치를 쓰는 에뮬레이션으로 실행되었고, 그렇게 표시했습니다.",
    ),
    "disturbed": Text(
        "The server was not quiet: beside {disturbed} of {total} measurements a fixed loop took over {percent} % longer than usual.",
        "서버가 조용하지 않았습니다: 전체 {total}건 중 {disturbed}건의 측정 전후에 고정 루프가 평소보다 {percent}% 넘게 오래 걸렸습니다.",
    ),
    "no-metal": Text(
        "The server itself was not measured: there is nothing to compare with.",
        "서버 자체를 측정하지 않아 비교 기준이 없습니다.",
    ),
    "others": Text(
        "{count} other instances ran on this cloud meanwhile.",
        "측정하는 동안 이 클라우드에서 다른 인스턴스 {count}개가 실행되고 있었습니다.",
    ),
}

MACHINE: dict[str, Text] = {
    "processor": Text("processor", "프로세서"),
    "processors": Text("processors", "프로세서 수"),
    "memory_mib": Text("memory (MiB)", "메모리(MiB)"),
    "system": Text("system", "운영체제"),
    "kernel": Text("kernel", "커널"),
    "virtualized": Text("itself under", "서버의 하이퍼바이저"),
    "container": Text("in a container of", "컨테이너"),
    "image": Text("image", "이미지"),
    "image_id": Text("AMI id", "AMI ID"),
    "haneul": Text("haneul", "haneul"),
    "qemu": Text("QEMU", "QEMU"),
    "sysbench": Text("sysbench", "sysbench"),
    "fio": Text("fio", "fio"),
    "iperf3": Text("iperf3", "iperf3"),
    "bench": Text("haneul-bench (SHA-256)", "haneul-bench(SHA-256)"),
    "started": Text("begun", "시작"),
    "ended": Text("last measurement", "마지막 측정"),
}
GUEST: dict[str, Text] = {
    "instance_type": Text("instance type", "인스턴스 유형"),
    "kernel": Text("kernel", "커널"),
    "virtualized": Text("virtualized (systemd)", "가상화 방식(systemd)"),
    "processor": Text("processor", "프로세서"),
    "processors": Text("processors", "프로세서 수"),
    "memory_kib": Text("memory (KiB)", "메모리(KiB)"),
    "disk": Text("driver of the disk", "디스크 드라이버"),
    "network": Text("driver of the network", "네트워크 드라이버"),
    "system": Text("system", "운영체제"),
}

# --- why -----------------------------------------------------------------------------------------------

WHY: dict[str, Text] = {
    "metal": Text(
        "The programs run straight on this server's processor under its own kernel. All factors are against this.",
        "프로그램이 서버의 커널 위에서 프로세서를 직접 사용합니다. 모든 배수의 기준입니다.",
    ),
    "metal-guest": Text(
        "This server is itself a guest ({what}): its page faults, timers and disk already cost what that costs.",
        "이 서버 자체가 게스트({what})이므로 페이지 폴트, 타이머, 디스크에는 이미 그 가상화 비용이 들어 있습니다.",
    ),
    # emulated, both ways
    "tcg-computing": Text(
        "The processor is a program: QEMU (TCG) translates the guest's instructions, block by block, into instructions of this "
        "server, and runs the translation. Sorting integers ×{integer}, SHA-256 ×{sha256}.",
        "프로세서가 프로그램입니다. QEMU(TCG)가 게스트의 명령어를 블록 단위로 이 서버의 명령어로 번역해 실행합니다. "
        "정수 정렬은 {integer}배, SHA-256은 {sha256}배 걸립니다.",
    ),
    "tcg-registers": Text(
        "What stays in registers is translated into nearly the same instructions, once, and runs as on bare metal (×{registers}).",
        "레지스터 안에서만 계산하는 코드는 거의 같은 명령어로 한 번 번역되어 베어메탈처럼 실행됩니다({registers}배).",
    ),
    "tcg-floating": Text(
        "Floating point costs more (×{floating}): every rounding and flag must be as on the guest's processor, so much of it "
        "is computed in software.",
        "부동소수점은 더 비쌉니다({floating}배). 반올림과 상태 플래그까지 게스트의 프로세서와 같아야 하므로 상당 부분을 소프트웨어로 계산합니다.",
    ),
    "tcg-memory": Text(
        "Each access to memory first asks QEMU's software MMU where that address is: memory bandwidth ×{memory}.",
        "메모리에 접근할 때마다 QEMU의 소프트웨어 MMU가 주소를 찾습니다. 메모리 대역폭 작업은 {memory}배 걸립니다.",
    ),
    "tcg-fault": Text(
        "A page fault (×{fault}) is the guest's own business: its kernel, translated like the rest, fills the page table.",
        "페이지 폴트({fault}배)는 게스트 안에서 처리됩니다. 다른 코드처럼 번역된 게스트 커널이 페이지 테이블을 채웁니다.",
    ),
    "tcg-call-same": Text(
        "A system call (×{getppid}) is not much dearer than other code: the guest's kernel is translated too, and nothing "
        "leaves QEMU.",
        "시스템 호출({getppid}배)은 다른 코드보다 특별히 비싸지 않습니다. 게스트 커널도 번역되어 실행되며 QEMU 밖으로 나가지 않습니다.",
    ),
    "tcg-call-more": Text(
        "A system call (×{getppid}) is dearer than other code (×{integer}): each change of privilege ends a translated "
        "block and goes through QEMU's helpers.",
        "시스템 호출({getppid}배)은 일반 코드({integer}배)보다 비쌉니다. 권한 수준이 바뀔 때마다 번역 블록이 끊기고 QEMU의 보조 함수를 거칩니다.",
    ),
    "tcg-process": Text(
        "New processes (fork ×{fork}, exec ×{exec}) change address spaces: each change empties the software MMU's tables.",
        "프로세스 생성(fork {fork}배, exec {exec}배)은 주소 공간을 바꾸는데, 그때마다 소프트웨어 MMU의 변환 표가 비워집니다.",
    ),
    "emulated-disk": Text(
        "The disk is an emulated IDE controller: each request is a sequence of register accesses, each of which stops the guest. "
        "Sequential writes ×{write}, reads ×{read}.",
        "디스크는 에뮬레이션된 IDE 컨트롤러입니다. 요청 하나가 여러 번의 레지스터 접근으로 이루어지고 접근할 때마다 게스트가 멈춥니다. "
        "순차 쓰기는 {write}배, 읽기는 {read}배 걸립니다.",
    ),
    "emulated-network": Text(
        "The network card is an emulated e1000: descriptors, registers and interrupts of a real card, for each packet. A round trip "
        "×{latency}, a stream ×{stream}, against the loopback.",
        "네트워크 카드는 에뮬레이션된 e1000입니다. 패킷마다 실제 카드의 디스크립터, 레지스터, 인터럽트를 흉내 냅니다. "
        "왕복은 루프백의 {latency}배, 스트림은 {stream}배 걸립니다.",
    ),
    "fast-same": Text(
        "The processor is emulated as under “{name}”: computing ×{cpu}, system calls and processes ×{kernel}, memory ×{memory}.",
        "프로세서는 “{name}”과 같은 방식으로 에뮬레이션됩니다. 연산 {cpu}배, 시스템 호출과 프로세스 {kernel}배, 메모리 {memory}배입니다.",
    ),
    "fast-disk": Text(
        "virtio puts requests into shared memory and rings once: sequential writes ×{write}, reads ×{read}.",
        "virtio는 요청을 공유 메모리에 넣고 한 번만 알립니다. 순차 쓰기는 {write}배, 읽기는 {read}배 걸립니다.",
    ),
    "fast-network": Text(
        "Packets go through virtio too, but the guest's network code is translated: a round trip ×{latency}, a "
        "stream ×{stream}, against the loopback.",
        "패킷도 virtio로 오가지만 게스트의 네트워크 코드는 번역되어 실행됩니다. 왕복은 루프백의 {latency}배, 스트림은 {stream}배 걸립니다.",
    ),
    "fast-beside": Text(
        "{what}: with every device emulated ×{emulated}, with virtio ×{fast}.",
        "{what}: 모든 장치를 에뮬레이션하면 {emulated}배, virtio를 쓰면 {fast}배입니다.",
    ),
    "sync-waits": Text(
        "Small synchronous writes (×{sync}) are near bare metal: they wait for the server's disk, and waiting costs the same "
        "everywhere.",
        "작은 동기 쓰기({sync}배)는 베어메탈에 가깝습니다. 서버의 디스크를 기다리는 시간은 어디서나 같기 때문입니다.",
    ),
    "timer": Text(
        "A sleep of 1 ms ends {late} late instead of {metal}: {why}",
        "1ms sleep이 {metal} 대신 {late} 늦게 끝납니다. {why}",
    ),
    "timer-tcg": Text(
        "the interrupt of an emulated timer waits for the end of a translated block.",
        "에뮬레이션된 타이머의 인터럽트는 번역 블록이 끝나기를 기다립니다.",
    ),
    "timer-uml": Text(
        "the guest's timer is a signal to a process of the server.",
        "게스트의 타이머는 서버 프로세스가 받는 시그널입니다.",
    ),
    "timer-hvm": Text(
        "the timer's interrupt makes the processor leave the guest and come back.",
        "타이머 인터럽트가 오면 프로세서가 게스트에서 나왔다가 다시 들어갑니다.",
    ),
    # paravirtual
    "uml-computing": Text(
        "The guest's programs are processes of the server, and their instructions run on the processor itself: integers "
        "×{integer}, floating point ×{floating}, SHA-256 ×{sha256}.",
        "게스트의 프로그램은 서버의 프로세스이고 명령어는 프로세서가 직접 실행합니다. 정수 {integer}배, 부동소수점 {floating}배, SHA-256 {sha256}배입니다.",
    ),
    "uml-call": Text(
        "A system call is where it pays: the server stops the process (ptrace) and lets the guest's kernel, another process, answer: "
        "two stops for each call. getppid takes {guest} instead of {metal}, ×{factor}.",
        "비용은 시스템 호출에서 나옵니다. 서버가 프로세스를 멈추고(ptrace) 또 다른 프로세스인 게스트 커널이 응답하므로 호출마다 두 번 멈춥니다. "
        "getppid가 {metal}에서 {guest}로, {factor}배가 됩니다.",
    ),
    "uml-call-switches": Text(
        "That is as long as {switches} context switches of this server ({switch} each).",
        "이 서버의 문맥 교환({switch}) {switches}번에 해당하는 시간입니다.",
    ),
    "uml-fault": Text(
        "A page fault (×{fault}) is a signal to the guest's kernel, which then asks the server to map the page into that process.",
        "페이지 폴트({fault}배)가 나면 게스트 커널이 시그널을 받고, 서버에 그 프로세스로 페이지를 매핑해 달라고 요청합니다.",
    ),
    "uml-process": Text(
        "fork (×{fork}) and exec (×{exec}) are many of both: system calls, and an address space that the guest's kernel "
        "builds page by page with the server's.",
        "fork({fork}배)와 exec({exec}배)에는 둘 다 많이 들어 있습니다. 시스템 호출도 많고, 게스트 커널이 서버의 시스템 호출로 주소 공간을 한 페이지씩 만듭니다.",
    ),
    "uml-memory": Text(
        "Memory is the server's own once it is mapped; its bandwidth ×{memory}.",
        "한번 매핑된 메모리는 서버의 메모리 그대로입니다. 대역폭 작업은 {memory}배 걸립니다.",
    ),
    "uml-memory-same": Text(
        "Memory is the server's own once it is mapped: its bandwidth is that of bare metal (×{memory}).",
        "한번 매핑된 메모리는 서버의 메모리 그대로여서 대역폭이 베어메탈과 같습니다({memory}배).",
    ),
    "uml-disk": Text(
        "A disk request is a read or a write of a file by the guest's kernel; behind that file qemu-storage-daemon shows the qcow2 volume "
        "(FUSE), so that each request passes through one program more. Sequential writes ×{write}, reads ×{read}.",
        "디스크 요청은 게스트 커널이 파일을 읽고 쓰는 것입니다. 그 파일 뒤에서 qemu-storage-daemon이 qcow2 볼륨을 보여 주므로(FUSE) "
        "요청마다 프로그램 하나를 더 거칩니다. 순차 쓰기는 {write}배, 읽기는 {read}배 걸립니다.",
    ),
    "uml-network": Text(
        "The guest's kernel sends each frame by a system call to a socket, from which a program outside its sandbox carries it to the "
        "tap: a round trip ×{latency}, a stream ×{stream}, against the loopback.",
        "게스트 커널은 프레임마다 시스템 호출로 소켓에 보내고, 샌드박스 밖의 프로그램이 이를 tap으로 옮깁니다. "
        "왕복은 루프백의 {latency}배, 스트림은 {stream}배 걸립니다.",
    ),
    # hvm
    "hvm-computing": Text(
        "The processor runs the guest's instructions itself: integers ×{integer}, floating point ×{floating}, SHA-256 "
        "×{sha256}.",
        "프로세서가 게스트의 명령어를 직접 실행합니다. 정수 {integer}배, 부동소수점 {floating}배, SHA-256 {sha256}배입니다.",
    ),
    "hvm-call": Text(
        "A system call (×{getppid}) goes from the guest's program to the guest's kernel, and the hypervisor does not hear of it.",
        "시스템 호출({getppid}배)은 게스트 프로그램에서 게스트 커널로 바로 가며 하이퍼바이저는 관여하지 않습니다.",
    ),
    "hvm-fault": Text(
        "Memory has two levels of page tables: a page fault ×{fault}, and the first touch of a page that the server "
        "has not given yet leaves the guest.",
        "메모리는 두 단계의 페이지 테이블을 거칩니다. 페이지 폴트는 {fault}배이고, 서버가 아직 주지 않은 페이지를 처음 건드리면 게스트 밖으로 나갑니다.",
    ),
    "hvm-devices": Text(
        "Disk and network are virtio: the guest leaves for the server once for many requests. Writes ×{write}, reads ×{read}, "
        "a network round trip ×{latency}.",
        "디스크와 네트워크는 virtio입니다. 여러 요청마다 한 번만 서버로 나갑니다. 쓰기 {write}배, 읽기 {read}배, 네트워크 왕복 {latency}배입니다.",
    ),
    "hvm-nested": Text(
        "The server is itself a guest, so each exit goes through the hypervisor underneath.",
        "서버 자체가 게스트이므로 게스트를 나갈 때마다 그 아래의 하이퍼바이저를 거칩니다.",
    ),
    # all
    "unexplained": Text(
        "For programs that the processor runs itself that is much, and no reason is established.",
        "프로세서가 직접 실행하는 프로그램치고는 큰 값이며, 이유는 밝혀지지 않았습니다.",
    ),
    "unexplained-disturbed": Text(
        "For programs that the processor runs itself that is much: likely the server was not quiet while it was measured (≈).",
        "프로세서가 직접 실행하는 프로그램치고는 큰 값입니다. 측정하는 동안 서버가 조용하지 않았기 때문으로 보입니다(≈).",
    ),
    "compile": Text(
        "Compiling, which is a bit of everything: ×{compile}.",
        "여러 작업이 섞인 컴파일은 {compile}배입니다.",
    ),
    "boots": Text(
        "From the call to SSH it takes {seconds} s, most of it {phase} ({part} s).",
        "호출부터 SSH까지 {seconds}초, 그 가운데 가장 긴 구간은 {phase}({part}초)입니다.",
    ),
    "nothing": Text("There is no figure to explain.", "설명할 측정값이 없습니다."),
}

# --- agreement with the literature ---------------------------------------------------------------------

VERDICT: dict[str, Text] = {
    "agrees": Text("agrees", "일치"),
    "partly": Text("in part", "부분 일치"),
    "differs": Text("does not agree", "불일치"),
    "unmeasured": Text("not measured", "측정 안 됨"),
}

CLAIM: dict[str, Text] = {
    "emulated-slow": Text(
        "Emulation in software is slow everywhere: 2 to 10 times, or worse.",
        "소프트웨어 에뮬레이션은 어디서나 느리다: 2~10배 또는 그 이상.",
    ),
    "para-computing": Text(
        "Paravirtual guests compute at nearly the speed of the bare machine (overhead 10 % to 50 %, less in user space).",
        "반가상화 게스트의 연산 속도는 베어메탈에 가깝다(오버헤드 10~50%, 사용자 공간에서는 더 작음).",
    ),
    "para-calls": Text(
        "User-mode Linux pays in system calls and forks: 10 to 70 times.",
        "User-mode Linux는 시스템 호출과 fork에서 비용을 치른다: 10~70배.",
    ),
    "hvm-computing": Text(
        "Hardware virtualization costs next to nothing for computing: 0.1 % to 1.5 %.",
        "하드웨어 가상화의 연산 비용은 거의 없다: 0.1~1.5%.",
    ),
    "order-computing": Text(
        "Order of costs for computing: emulated, then paravirtual, then HVM.",
        "연산 비용의 순서: 에뮬레이션, 반가상화, HVM 순으로 비싸다.",
    ),
    "order-calls": Text(
        "Order of costs for system calls: paravirtual by ptrace, then emulated, then HVM.",
        "시스템 호출 비용의 순서: ptrace 기반 반가상화, 에뮬레이션, HVM 순으로 비싸다.",
    ),
    "devices": Text(
        "Emulated devices cost more than paravirtual ones.",
        "에뮬레이션 장치는 반가상화 장치보다 비싸다.",
    ),
    "build": Text(
        "Building software on User-mode Linux takes up to twice as long.",
        "User-mode Linux에서 소프트웨어 빌드는 최대 2배까지 걸린다.",
    ),
}

FINDING: dict[str, Text] = {
    "range": Text("×{low} to ×{high} ({what})", "{low}~{high}배({what})"),
    "one": Text("×{low} ({what})", "{low}배({what})"),
    "many": Text("{count} workloads", "작업 {count}종"),
    "below": Text("less than said: {what}", "알려진 것보다 작음: {what}"),
    "above": Text("more than said: {what}", "알려진 것보다 큼: {what}"),
    "named": Text("{what} ×{factor}", "{what} {factor}배"),
    "order": Text("{order}", "{order}"),
    "beside": Text("{what}: emulated ×{one}, paravirtual ×{other}", "{what}: 에뮬레이션 {one}배, 반가상화 {other}배"),
    "because": Text("→ {why}", "→ {why}"),
    "unknown": Text("No reason is established.", "이유는 아직 밝혀지지 않았습니다."),
    # known deviations
    "slow-baseline": Text(
        "Likely the baseline: this server is itself a guest, where this is expensive already, so that the factor is smaller.",
        "기준값의 영향일 가능성이 큽니다. 이 서버 자체가 게스트여서 이 작업이 이미 비싸므로 배수가 작아집니다.",
    ),
    "simple-loop": Text(
        "Likely: a loop of a few instructions in registers is translated once, into nearly the same ones, and runs from QEMU's cache.",
        "레지스터만 쓰는 짧은 루프는 거의 같은 명령어로 한 번 번역된 뒤 QEMU의 캐시에서 실행되기 때문으로 보입니다.",
    ),
    "slow-switch": Text(
        "A context switch takes {switch} on this server, and each system call of the guest needs some.",
        "이 서버의 문맥 교환이 {switch} 걸리고, 게스트의 시스템 호출에는 문맥 교환이 여러 번 필요합니다.",
    ),
    "fast-switch": Text(
        "A context switch takes only {switch} on this server.",
        "이 서버의 문맥 교환은 {switch}밖에 걸리지 않습니다.",
    ),
    "one-file": Text(
        "One file is compiled, by one process that runs on: nearly all of it is computing, where this generation is fast.",
        "하나의 프로세스가 파일 하나를 계속 컴파일하므로 거의 모두 연산이고, 이 세대는 연산이 빠릅니다.",
    ),
    "faults": Text(
        "Likely: a compiler always asks for new memory, and each first touch of a page is a page fault (×{fault} here).",
        "컴파일러는 새 메모리를 계속 요청하고, 페이지를 처음 건드릴 때마다 페이지 폴트({fault}배)가 나기 때문으로 보입니다.",
    ),
    "disturbed": Text(
        "Likely: the server was not quiet while some of it was measured (≈).",
        "일부를 측정하는 동안 서버가 조용하지 않았기 때문으로 보입니다(≈).",
    ),
    "nested": Text(
        "The server is itself a guest: hardware help is itself virtual here.",
        "서버 자체가 게스트여서 여기서는 하드웨어 지원도 가상화되어 있습니다.",
    ),
    "within-noise": Text(
        "The difference is within the spread of the samples.",
        "차이가 표본의 흩어짐 범위 안에 있습니다.",
    ),
    "translated-network": Text(
        "Likely: the guest's own network code, translated, takes longer than either device.",
        "장치보다, 번역되어 실행되는 게스트의 네트워크 코드에 시간이 더 걸리는 것으로 보입니다.",
    ),
}
