"""Frequencies of the Laplace table with 64 scales from 0.01 to 16 (docs/bitstream.md), as integers.

An array [101, 64] uint16: frequency of the symbols -50 .. 50 for each scale, 0 where the symbol escapes. Stored as
differences along the scales modulo 65536, all low bytes and then all high bytes, zlib, base 85.
"""

PACKED_FREQUENCIES = (
    "c-rlme{54#6vx}X_xj_#c5V0id+mE|_tti8x3y#Key=P0kulxGEfN?(heX*#nE?UG96A@sz(f);s7#|q!!(3|Sz<83;9~G67$O@Q4ML0<hK7J)TgNu"
    "*8~&aGefJC(llM*fUq3zfoO|xQ=bTC;NRnchT&dR4MhPm9D^wbt!GwrQa9pWM(;Ll*ycEY(q&D4TLFEaYq;#~|ipa|df>P@Z7E~T1<di1eWVIoN50f"
    "j@T7LN%sNq*AHCm&^W=G;>Ql8i9jkXL28ZX0@{O*}E9B4cyB~%n2eLKUT?Ve0ds%fLm!8p;DkIAVtgUQY~(Rd6~s<kGI!|6ieF$`B}^ky6Da=Vb+#|"
    "ctPTkTGFrW?t9K6&*9yTi?KE+qE}rG_>+oLm-%Vjsihsx+gOb$dKnZp7r%n={;;*Xwa3EnlUkZ4Bqh_M!0n@=2}H;q?0aegvM6zCxq3vYCE=5Q)d+W"
    "SSwv?F|NV0$wM=@)c^miS=aX<>dyvEXwB3nD+<sLwUh0R(S3!D7~5S=7b9J!+|Wp_XmE>d}bhA5G@G%xeUSP`P8>Ky`e~9aU|?_TTsk9vT_PaOG+bQ"
    "pHtxbDZ}Mdy44-bFR3UmkA^%BTHx~elVf7D^NV6tl@-xk&Z-r-c}g{H_k@aLHMI+4k$}rc3G|-QSu=Bs;<felRk8eRhfXdm^^{tZD^M7(Z)j|&E)Q`"
    "QDk&^@Y9r&1#&2(GZf>kD4X}EALI6(?WIE%EENooT(z4`^c+_K2O<xugds1i1j#S;bymi&xOB>2Vj8<}GM1b?8&gv_yxvRB(P5Zq|78QDFVr=A0%FY"
    "wYbep%hzNKy5#tjdxY>o%*ip0n_CsW2rog+}Tc-8u@o+mrku2>Xh)QR(7pZGAv#S^5F4c9E|=ze<FGdmt@Zz|=e#JN)+55ALH-pJD|zLMq#x_7_!=H"
    "3^ddSrP8r~c{8@%P?7urHOh%T=^1(%81`m4U$zjvU;xr8UN47d{_6*#C0h3pal)2_?-&7I*A=>%_M|jGR8Yw`WC^zBK&q8+&&4Zr!@=rn^R&yz!OW2"
    "Tn_@9*#~7^*>r?yL@c_vpwq{yzl<iYaYIFkxH7gYuCOsOvT!s=<U2`!Q_$dxZ>pA?o|yHh2aH}vYN(a((5^`&@#oXyT0T$ye|t^SJ=<>Rh{3ScY60y"
    "pY;3TPd_?7eCFbmn#qmL;$<qMZ_%d1^y6cjCe{rxm8GhI;@2fj{dmX4Exzvtp6lJV^VLH`R}6*AHuoJmb(wTc{+*w=_{G5vUGG<T8h+{Q*<@^g6*aA"
    "`dmihQ?zA5$J9^tEl?O~4KVw(#yTCMe^&k6@oMoR-8GLn{57S+vDcZk*|7=kT{zKz`3-^C6@(-T>@bd>h|KR%veE)&(U-118et*F4AN2hNzyIL+16u"
    "!p>n~{i2d+P%^)I;op6Q-6fchWWe}MZRX#WN6|G@nxwEu<n-{AfqI)8x9KcMp$@caile}c}xpz}BI{0};Rgw8*q^H=En7e0T6&cC7aci{XV`u_v?{|"
    "`~3M2Qk5N|dPotCI7}C+C+>!uTYNPr~>lj8DS&B#2KY1@qDw&8Ac2rN8MP^v!vmlFjH>`Wo`{@47yJjlwXT7l!dLPx9ZN{zHHHg?|eS|IMk%iNyHW*"
    "y!l!75+0eHa?z6OiWz8IypHtHTCCDfbHKJ|K~3LbF%+)k$-cV|M2q%KL6nR2Ymm5@85ZUKj!`Y6eUWOC{dzBiTdyL3q4KH6#"
)
